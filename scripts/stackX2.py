#!/usr/bin/env python3
"""Average all d*.fits of the current directory whose FWHM is below a limit: stackX2.py 5.0.

Copy this file wherever it is wanted; it needs only the Python that fastack is installed in.
"""

from fastack.cli import stackx2

if __name__ == "__main__":
    stackx2()
