"""One number hidden in a text, in words that no published test has: a model may know those tests by heart."""

from __future__ import annotations

WORDINGS = (
    (
        " The gate of the north warehouse opens with the code {key}.",
        " Which code opens the gate of the north warehouse? The gate of the north warehouse opens with the code",
    ),
    (
        " Note to the operator: the serial number of the spare pump is {key}.",
        " What is the serial number of the spare pump? The serial number of the spare pump is",
    ),
    (
        " Our reference for the insurance claim is {key}, as agreed by phone.",
        " What is our reference for the insurance claim? Our reference for the insurance claim is",
    ),
    (
        " The parcel for Ms. Okafor has the tracking number {key}.",
        " Which tracking number has the parcel for Ms. Okafor? The parcel for Ms. Okafor has the tracking number",
    ),
    (
        " At noon the meter in the cellar showed {key} units.",
        " What did the meter in the cellar show at noon? At noon the meter in the cellar showed",
    ),
    (
        " Passengers of the night train to Lyon board with ticket {key}.",
        " With which ticket do passengers of the night train to Lyon board? "
        "Passengers of the night train to Lyon board with ticket",
    ),
    (
        " The locker of the swimming club is secured by the combination {key}.",
        " What is the combination of the locker? The locker of the swimming club is secured by the combination",
    ),
    (
        " In the archive the map of the harbour lies under the shelf mark {key}.",
        " Under which shelf mark does the map of the harbour lie? "
        "In the archive the map of the harbour lies under the shelf mark",
    ),
    (
        " The grant for the bird survey was paid under voucher {key} last spring.",
        " Under which voucher was the grant for the bird survey paid? "
        "The grant for the bird survey was paid under voucher",
    ),
    (
        " To silence the alarm of the greenhouse, dial {key} twice.",
        " What do you dial to silence the alarm of the greenhouse? To silence the alarm of the greenhouse, dial",
    ),
)
"""(what the text says, what is asked); samples take them in turn."""
