"""A command in two gloo processes, as torchrun would start them."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.processes import Before, start_command, statuses_of

TWO = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp")


def start(*words: str, before: Before | None = None) -> None:
    """Run a command in two processes, with what torchrun's agent gives to each and the store that it serves.

    Args:
        words: What is typed after ``medsam-tune``.
        before: What each process does first; what this returns is called at its end.
    """
    # The store binds a port that is free and keeps it: nobody else can take it before the processes ask for it.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    ranks = [
        start_command(*words, folder=Path.cwd(), before=before, **agent, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")
    ]
    statuses = statuses_of(ranks)
    assert statuses == [0, 0], f"{' '.join(words)}: ended with {statuses}\n{Path('log.txt').read_text()}"
