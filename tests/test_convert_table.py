"""Tables: what they make of somebody else's tensors, and all that is wrong at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensors import random

from unclip.convert.table import gather, row
from unclip.weights import in_file


def test_a_table_lists_all_that_is_wrong(tmp_path: Path) -> None:
    torch.save(
        {"x.0.w": random(4, 3), "x.0.b": random(5), "x.1.w": random(4, 3), "old": random(2), "c": torch.ones(2).long()},
        tmp_path / "x",
    )
    source = in_file(tmp_path / "x")
    table = {"layer.#.weight": row("x.#.w"), "layer.#.bias": row("x.#.b"), "both.*": row("x.0.*", "x.1.*"), "c": row("c")}
    wanted = {"layer.0.weight": random(4, 3), "layer.1.weight": random(4, 3), "both.w": random(8, 3)}
    good = gather(table, wanted, source, "x", ignored=("old", ".b", "c"))
    assert good["both.w"].equal(torch.cat([good["layer.0.weight"], good["layer.1.weight"]]))
    wanted |= {"layer.0.bias": random(4), "layer.1.bias": random(4), "c": random(2), "layer.2.weight": random(4, 3)}
    with pytest.raises(ValueError) as error:
        gather(table, wanted, source, "x")
    assert str(error.value) == (
        "x does not fit its config: 2 missing: x.1.b, x.2.w; 1 unexpected: old; "
        "1 of another shape: x.0.b (5,) (config (4,)); 1 of another type: c (2,) (torch.int64)"
    )
