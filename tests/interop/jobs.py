"""What a framework keeps between steps, and where its parts are."""

from typing import Any


class Jobs:
    """A job is whatever a framework keeps between steps, and may change in place."""

    def params(self, job: Any) -> Any:
        """Return the parameters as the optimizer sees them."""
        raise NotImplementedError

    def opt_state(self, job: Any) -> Any:
        """Return the optimizer's state."""
        raise NotImplementedError

    def arrays(self, job: Any) -> Any:
        """Return a tree of all arrays of a job."""
        return job

    def with_arrays(self, job: Any, arrays: Any) -> Any:
        """Return the job with other arrays."""
        del job
        return arrays
