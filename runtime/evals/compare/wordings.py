"""One number hidden in a text, in words that no published test has: a model may know those tests by heart."""

from __future__ import annotations

Wordings = tuple[tuple[str, str], ...]
"""(what the text says, what is asked); samples take them in turn."""
WORDINGS: Wordings = (
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
"""One number, of another kind in each."""
PASSKEY_WORDINGS: Wordings = (
    (
        " The pass key for the next section is {key}.",
        " What was the pass key for the next section? The pass key for the next section is",
    ),
    (
        " Keep this in mind: the secret pass key is {key}.",
        " Which secret pass key should be kept in mind? The secret pass key is",
    ),
    (
        " The librarian's pass key is {key}, as the clerk wrote.",
        " What is the librarian's pass key? The librarian's pass key is",
    ),
    (" Pass key of this manual: {key}.", " Tell the pass key of this manual. Pass key of this manual:"),
    (
        " Copy down this pass key: {key}. You will be asked for it.",
        " Which pass key was to be copied down? Copy down this pass key:",
    ),
    (
        " To unlock the appendix, use the pass key {key}.",
        " How is the appendix unlocked? To unlock the appendix, use the pass key",
    ),
    (
        " The hidden pass key reads {key} and nothing else.",
        " How does the hidden pass key read? The hidden pass key reads",
    ),
    (
        " (Reviewers: your pass key is {key}.)",
        " What is the pass key of the reviewers? Reviewers: your pass key is",
    ),
    (
        " The pass key was changed to {key} before printing.",
        " What was the pass key changed to? The pass key was changed to",
    ),
    (
        " For the exam you need one number, the pass key {key}.",
        " Which number do you need for the exam? You need one number, the pass key",
    ),
)
"""A pass key, in words other than the published ones."""
