"""The one error that is the user's to mend."""


class UserError(ValueError):
    """Wrong settings, weights or folders: scripts print its message without a traceback and exit with 2."""
