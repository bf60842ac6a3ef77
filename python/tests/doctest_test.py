#!/usr/bin/python3
"""Runs the examples in the package's documentation."""

import doctest
import sys

import whimbrel

failed, tried = doctest.testmod(whimbrel, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
print(f"{tried} examples, {failed} failed")
sys.exit(0 if tried > 20 and failed == 0 else 1)
