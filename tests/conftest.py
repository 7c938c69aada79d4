"""Settings for all tests: two threads of torch, whatever the machine, and one seed."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _settings():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
