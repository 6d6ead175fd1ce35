"""What the library tells its users: the error that is theirs to mend, and the warning that it has mended something."""


class UserError(ValueError):
    """Wrong settings, weights or folders: scripts print its message without a traceback and exit with 2."""


class ItemError(UserError):
    """An item that cannot be trained on. One process of several meets it, and so it is that one which must say so."""


class RepairWarning(UserWarning):
    """An input is damaged or out of the ordinary, and was read all the same: the message says what was done."""
