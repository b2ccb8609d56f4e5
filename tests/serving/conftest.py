"""One small server for the tests that talk to one."""

import pytest


@pytest.fixture(scope="module")
def student(tokenizer):
    pytest.importorskip("fastapi")
    from tests.serving.served import make_student

    return make_student(tokenizer)


@pytest.fixture(scope="module")
def served(student):
    """4 rows, a queue of 8."""
    from tests.serving.served import Served

    with Served(student, queue=8, max_body=20_000) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    import httpx2

    with httpx2.Client(base_url=served.url, timeout=120) as client:
        yield client
