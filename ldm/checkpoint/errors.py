"""What is raised about a file's content."""


class CheckpointError(ValueError):
    """A file that is damaged, hostile or of another kind: the text names it and says what to do."""


class NoModel(CheckpointError):
    """A file of weights that is no model, or none of a family that is known here."""


def explained(error: Exception) -> str:
    """The words of a ValueError; of another error, that what was read is malformed and how it showed."""
    return str(error) if isinstance(error, ValueError) else f"malformed ({type(error).__name__}: {error})"
