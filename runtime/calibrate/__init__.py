"""Quantizers of the NUQ formats, for `runtime calibrate`.

`dense` computes a loss and its gradients by the keys and values of each layer, `samples` keeps them for the windows
of a text, `fitting` and `levels` make a layer's quantizer of them, `calibration` runs all of it. `published` reads
the quantizers of KVQuant's release, through `array_pickle`, which runs nothing that a pickle names.
"""
