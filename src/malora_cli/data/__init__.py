"""From a mix to batches: sources, formats, encoding and the order of the mixture.

Importing this package or ``formats`` loads neither torch nor datasets; the other modules do.
"""
