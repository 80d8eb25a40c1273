"""Every error that parure raises on purpose.

    ParureError                      exit code 1
    ├── InputError                   exit code 2: the caller's input; nothing was attempted
    │   ├── ImageError               a picture that cannot be read safely
    │   ├── BoxError                 a box that does not fit its photo
    │   ├── RequestError             steps, solver, guidance, mode, seed
    │   │   └── SolverError          a run that a solver does not have, a scheduler it cannot express
    │   ├── CheckpointError          a checkpoint folder that is incomplete or unsafe
    │   ├── BundleError              a bundle that is missing, incomplete or altered
    │   └── RecordError              a benchmark's record that is missing, foreign or of another version
    ├── ExportError                  export could not keep its promise (parity, unsupported module)
    ├── EngineError                  a TensorRT engine that cannot be opened, refitted or run
    ├── ServerError                  something about an inference server
    │   ├── ServerUnavailable        no server answers; may be retried
    │   │   └── ServerBusy           a server that answers has no place left; the server loop retries by itself
    │   ├── CallRefused              the server says that the call itself is wrong; never retried
    │   ├── DeadlineExceeded         the call did not finish in time
    │   ├── ModelUnavailable         the server lacks a component model, or it is not ready
    │   ├── BundleMismatch           the server serves another bundle than expected
    │   ├── SharedMemoryRefused      the server does not take shared memory
    │   └── InvalidReply             a reply of the wrong size, shape or with non-finite numbers
    ├── StorageError                 results cannot be written, or inputs not be read, though nothing is wrong with them
    └── Cancelled                    the caller gave up

Messages name the subject, what was received, what was expected, and what to do next.
"""


class ParureError(Exception):
    """Base of all errors of parure."""

    exit_code = 1


class InputError(ParureError, ValueError):
    """The caller's input is wrong; nothing was attempted."""

    exit_code = 2


class ImageError(InputError):
    """A picture is missing, too large, truncated, or not a picture."""


class BoxError(InputError):
    """A box is empty, inverted, tiny, or outside its photo."""


class RequestError(InputError):
    """A parameter of a request (steps, solver, guidance, mode, seed) is out of range."""


class SolverError(RequestError):
    """A solver cannot do what is asked of it: a step count it has no run of, a scheduler it cannot express."""


class CheckpointError(InputError):
    """A checkpoint folder is incomplete, inconsistent or unsafe."""


class BundleError(InputError):
    """A bundle is missing, incomplete, altered, or of another schema version."""


class RecordError(InputError):
    """A record of `parure bench` is missing, empty, foreign, or of another schema version."""


class ExportError(ParureError):
    """An export could not keep its promise; no bundle was written."""


class EngineError(ParureError):
    """TensorRT cannot open, refit or run an engine."""


class ServerError(ParureError):
    """An inference server failed."""


class ServerUnavailable(ServerError):
    """No server answers at the address, or it went away; the call may be retried."""


class ServerBusy(ServerUnavailable):
    """A server that answers takes no more work for now."""


class CallRefused(ServerError):
    """A server says that the call itself is wrong: its tensors, or a value in them."""


class DeadlineExceeded(ServerError):
    """A call did not finish before its deadline."""


class ModelUnavailable(ServerError):
    """A server lacks a component model, or the model is not ready."""


class BundleMismatch(ServerError):
    """A server serves another bundle than the one expected."""


class SharedMemoryRefused(ServerError):
    """A server does not let clients share memory with it."""


class InvalidReply(ServerError):
    """A reply has the wrong byte count, shape or type, or holds numbers that are not finite."""


class StorageError(ParureError):
    """A disk or an object store fails: full, gone, or not answering."""


class Cancelled(ParureError):
    """The caller cancelled the work."""

    exit_code = 130
