"""Errors that a user can mend: scripts show their message alone, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Base of all errors about what the user gave: config, files, specs. The message says what, where and the fix."""
