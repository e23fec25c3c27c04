"""What is wrong with an uploaded coefficient file. Nothing of it was stored."""

from onebasis.core.errors.tree import RequestError


class CoefficientError(RequestError):
    """The coefficient file can't be used. Nothing was stored, an earlier version still serves."""

    code = "invalid_coefficients"


class PickleRefused(CoefficientError):
    """The bytes are a pickle or a zip of one; such files can run code and are never opened."""

    code = "pickle_refused"

    def __init__(self) -> None:
        super().__init__("found a pickle or zip archive; only safetensors is read: export the file again")


class NotSafetensors(CoefficientError):
    """The container can't be parsed."""

    code = "not_safetensors"

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a safetensors file ({reason}); export the file again")


class TruncatedFile(CoefficientError):
    """The header announces more bytes than there are."""

    code = "truncated_file"

    def __init__(self, *, needed_bytes: int, found_bytes: int) -> None:
        super().__init__(f"file needs {needed_bytes} bytes, found {found_bytes}; send it again, whole")


class InvalidMetadata(CoefficientError):
    """A metadata field is missing or has the wrong shape."""

    code = "invalid_metadata"

    def __init__(self, field: str, *, found: str | None, allowed: str) -> None:
        super().__init__(f"metadata {field!r}: needs {allowed}, found {found!r}; export the file again")


class UnsupportedFormatVersion(CoefficientError):
    """A version this reader does not know."""

    code = "unsupported_format_version"

    def __init__(self, *, found: str, supported: str) -> None:
        super().__init__(f"format_version {found!r}, this server reads {supported}; re-export or update")


class UnknownForm(CoefficientError):
    """A form of coefficients this reader does not know."""

    code = "unknown_form"

    def __init__(self, *, found: str, supported: tuple[str, ...]) -> None:
        super().__init__(f"form {found!r}, this server reads {', '.join(supported)}; export one of these")


class UnknownTensor(CoefficientError):
    """A tensor that this reader would have to ignore."""

    code = "unknown_tensor"

    def __init__(self, names: list[str]) -> None:
        shown = ", ".join(names[:5])
        super().__init__(
            f"needs the tensor 'coefficients' and may have 'residual.<site>.A' and '.B', found also {shown}; "
            f"nothing is ignored"
        )


class MissingTensor(CoefficientError):
    """The tensor `coefficients` is not in the file."""

    code = "missing_tensor"

    def __init__(self) -> None:
        super().__init__("needs the tensor 'coefficients', found none of that name; export the file again")


class WrongDtype(CoefficientError):
    """Numbers of a type that is not allowed."""

    code = "wrong_dtype"

    def __init__(self, tensor: str, *, found: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{tensor[:100]}: numbers are {found}; allowed: {', '.join(allowed)}")


class WrongLength(CoefficientError):
    """The count of numbers does not follow from basis, form, k and sites. Nothing is padded or cut."""

    code = "wrong_length"

    def __init__(self, *, needed: int, found: tuple[int, ...], form: str) -> None:
        super().__init__(f"form {form} needs coefficients of shape ({needed},) here, found {found}")


class NoMixingCores(CoefficientError):
    """The form is `vector`, and the basis has no mixing cores to make cores from."""

    code = "no_mixing_cores"

    def __init__(self) -> None:
        super().__init__("form vector needs a basis with mixing cores, the loaded one has none; export core or diag")


class IncompleteResidual(CoefficientError):
    """One of the two factors of a site's residual is missing."""

    code = "incomplete_residual"

    def __init__(self, *, found: str, missing: str) -> None:
        super().__init__(f"found the tensor {found[:100]}, but not {missing[:100]}; a residual needs both")


class WrongResidualShape(CoefficientError):
    """The factors of a residual do not fit each other or the site. Nothing is padded, transposed or cut."""

    code = "wrong_residual_shape"

    def __init__(self, site: str, *, needed: str, found: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        a, b = (str(shape)[:100] for shape in found)
        super().__init__(f"residual of {site[:100]}: needs {needed}, found A {a} and B {b}")


class ResidualRankTooHigh(CoefficientError):
    """A residual of a higher rank than this server allows, or than the site's weight can have."""

    code = "residual_rank_too_high"

    def __init__(self, site: str, *, found: int, allowed: int, remedy: str) -> None:
        super().__init__(f"residual of {site[:100]}: rank {found}, at most {allowed} here; {remedy}")


class ResidualTooLarge(CoefficientError):
    """A residual that would not fit the memory for residuals even alone."""

    code = "residual_too_large"

    def __init__(self, *, found: int, allowed: int) -> None:
        super().__init__(
            f"the residual has {found} numbers, at most {allowed} fit the memory for residuals; lower its ranks, leave "
            f"sites out, or raise --residual-mib"
        )


class WrongPrefix(CoefficientError):
    """`k` is not a prefix of the basis rows."""

    code = "wrong_prefix"

    def __init__(self, *, found: int, largest: int) -> None:
        super().__init__(f"k={found}: the loaded basis allows 1 to {largest}")


class UnknownSite(CoefficientError):
    """A site the basis does not have."""

    code = "unknown_site"

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"sites {', '.join(names[:5])} are not in the loaded basis, or not in its order")


class NotFinite(CoefficientError):
    """NaN or infinity among the numbers."""

    code = "not_finite"

    def __init__(self, tensor: str, *, n_bad: int, first: int) -> None:
        super().__init__(
            f"{tensor[:100]}: {n_bad} numbers are NaN or infinite, the first at position {first}; train again"
        )


class WrongBasis(CoefficientError):
    """The file was made for another basis than the one loaded."""

    code = "wrong_basis"

    def __init__(self, *, found: str, loaded: str) -> None:
        super().__init__(f"file is for basis {found}, this server runs {loaded}; re-export it against that one")


class WrongBase(CoefficientError):
    """The file was made for other base weights than the ones loaded."""

    code = "wrong_base"

    def __init__(self, *, found: str, loaded: str) -> None:
        super().__init__(f"file is for base weights {found}, this server runs {loaded}; train it on these")
