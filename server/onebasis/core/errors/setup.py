"""What the operator can fix: of options, files and stores."""

from onebasis.core.errors.tree import SetupError


class InvalidBasis(SetupError):
    """The basis file can't be used."""

    code = "invalid_basis"


class InvalidStore(SetupError):
    """The task store can't be opened."""

    code = "invalid_store"

    def __init__(
        self, url: str, reason: str, *, advice: str = "give a URL such as sqlite:////var/lib/onebasis/tasks.db"
    ) -> None:
        super().__init__(f"task store {url}: {reason}; {advice}")


class InvalidBackup(SetupError):
    """A backup file can't be written or read."""

    code = "invalid_backup"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"backup {path}: {reason}")


class StoreNotEmpty(SetupError):
    """A restore would mix two histories."""

    code = "store_not_empty"

    def __init__(self, n_versions: int, n_keys: int) -> None:
        super().__init__(
            f"the store holds {n_versions} versions of tasks and {n_keys} API keys already; restore into an empty "
            f"one, or pass --replace to drop them"
        )


class InvalidModel(SetupError):
    """The base model can't be used."""

    code = "invalid_model"


class InvalidAdapter(SetupError):
    """A LoRA adapter can't be read: a file is missing, damaged, or says what can't be true."""

    code = "invalid_adapter"

    def __init__(self, adapter: object, reason: str) -> None:
        super().__init__(f"adapter {adapter}: {reason}")


class UnsupportedAdapter(InvalidAdapter):
    """The adapter may be sound, but a field of its configuration asks for what this reader would have to leave out."""

    code = "unsupported_adapter"

    def __init__(self, adapter: object, field: str, reason: str) -> None:
        super().__init__(adapter, f"{field}: {reason}")
        self.param = field


class LowFidelity(SetupError):
    """Less of an adapter would be kept than was asked for. Nothing was written."""

    code = "low_fidelity"

    def __init__(self, adapter: str, *, what: str, kept: float, needed: float) -> None:
        super().__init__(
            f"adapter {adapter}: {kept:.3f} of its {what} would be kept, --min-energy is {needed:g}; distill it, fit "
            f"its data, keep more with --residual, or take a basis that was built with it"
        )


class InvalidData(SetupError):
    """The training data can't be used."""

    code = "invalid_data"


class InvalidFile(SetupError):
    """A file given to a command can't be used, for the reason that a server would give."""

    code = "invalid_file"

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class InvalidMerge(SetupError):
    """These tasks can't be merged in this way."""

    code = "invalid_merge"


class InvalidReport(SetupError):
    """A report can't be made of these adapters, tasks and data."""

    code = "invalid_report"


class UnsupportedVllm(SetupError):
    """There is no vLLM, or not one that works with this plugin, or an option of it does not."""

    code = "unsupported_vllm"
