"""Read by every process that a test starts: none needs bitsandbytes, whose import is a fifth of a start."""

import sys

sys.modules["bitsandbytes"] = None  # which is to PEFT that it is not installed
