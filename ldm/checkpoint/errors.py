"""What is raised about a file's content."""


class CheckpointError(ValueError):
    """A file that is damaged, hostile or of another kind: the text names it and says what to do."""


class NoModel(CheckpointError):
    """A file of weights that is no model, or none of a family that is known here."""
