#!/usr/bin/env python3
"""Average frames of a night from the archive: dfstack.py east-14 19_01_30 140 150.

Copy this file wherever it is wanted; it needs only the Python that fastack is installed in.
"""

from fastack.cli import dfstack

if __name__ == "__main__":
    dfstack()
