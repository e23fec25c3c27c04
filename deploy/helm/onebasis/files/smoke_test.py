"""`helm test`: register a task, generate with it, delete it, as a client would. Its coefficients are zeros."""

import os
import secrets

import numpy as np

from onebasis.coefficients.format import write_coefficients
from onebasis_client import OneBasis, api_errors


def main() -> None:
    """Raise if anything is not as it should be."""
    name = f"smoke-test-{secrets.token_hex(4)}"
    with OneBasis(os.environ["ONEBASIS_URL"], api_key=os.environ.get("ONEBASIS_API_KEY")) as client:
        basis = client.basis()
        zeros = np.zeros(sum(site.k_in * site.k_out for site in basis.sites), np.float16)
        file = write_coefficients(zeros, form="core", basis=basis.digest, base_fingerprint=basis.base_fingerprint)
        digest = client.register(name, file).task.digest
        try:
            answer = client.complete(name, "One, two,", max_tokens=4, temperature=0)
            assert answer.onebasis.digest == digest, f"registered {digest}, answered by {answer.onebasis.digest}"
            assert answer.usage is not None and answer.usage.completion_tokens > 0, f"no tokens in {answer}"
        finally:
            client.delete(name)
        try:
            client.show(name)
        except api_errors.TaskNotFound:
            return
        raise AssertionError(f"{name} is still there after it was deleted")


if __name__ == "__main__":
    main()
