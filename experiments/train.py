"""Train a recipe: python -m experiments.train emoji.decoder train.steps=500 model.unet.channels=96 --run runs/decoder

Settings change fields of the recipe by name.  The same command continues a run that was cut off.  Several processes:
`accelerate launch experiments/train.py ...` or torchrun.  Before a long run: `--overfit 16` trains on 16 samples and says
whether the stage is wired right, `--plan 8` tells what the run will need on 8 cards.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from experiments.recipes import Recipe, find


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="for instance emoji.decoder; an unknown name lists all")
    parser.add_argument("settings", nargs="*", help="name=value, for instance train.steps=500")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/<recipe>)")
    parser.add_argument("--init", type=Path, help="run folder whose averaged weights a new run starts from")
    parser.add_argument("--show", action="store_true", help="print the recipe as JSON and stop")
    parser.add_argument("--overfit", type=int, metavar="N", help="train on N samples as a self-test; status 1 when it fails")
    parser.add_argument("--plan", type=int, metavar="CARDS", help="tell memory, FLOPs and days on so many cards and stop")
    parser.add_argument("--card", default="A100", help="for --plan: A100, H100, ...")
    parser.add_argument("--utilisation", type=float, default=0.4, help="for --plan: the part of the cards' speed reached")
    options = parser.parse_intermixed_args(arguments)
    try:
        recipe = find(options.recipe).override(*options.settings)
        if options.show:
            print(recipe.to_json(), end="")
            return 0
        if options.plan is not None:
            from experiments.plan import of_recipe

            print(of_recipe(recipe, options.plan, options.card, options.utilisation))
            return 0
        folder = options.run or Path("runs") / options.recipe
        if options.overfit is not None:
            return self_test(recipe, folder.with_name(f"{folder.name}-overfit"), options.overfit)
        run(recipe, folder, options.init)
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(recipe: Recipe, run_dir: Path, init: Path | None = None) -> None:
    """Build, train, load the averaged weights into the model and hand it to the recipe."""
    from unclip.training import load_ema, train

    task, data = recipe.build()
    run_dir.mkdir(parents=True, exist_ok=True)
    main_process = int(os.environ.get("RANK", "0")) == 0
    if main_process:
        count = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
        print(f"{count / 1e6:.2f}M trainable parameters, {len(data)} samples, run {run_dir}", flush=True)
    trained = train(task, data, recipe.train, run_dir, init=load_ema(init) if init else None)
    if main_process:
        # Of a model that is shared out over processes the main one makes a whole copy.
        model: Any = type(task.model)(task.model.config) if recipe.train.shard else task.model
        model.load_state_dict(trained.ema)
        model.eval()
        (run_dir / "recipe.json").write_text(recipe.to_json())
        recipe.finish(model, run_dir)


def self_test(recipe: Recipe, run_dir: Path, n: int) -> int:
    """Train on n samples, say whether the stage is wired right; 0 = it is."""
    from unclip.training.overfit import overfit

    task, data = recipe.build()
    found = overfit(task, data, recipe.train, run_dir, n)
    if int(os.environ.get("RANK", "0")) == 0:
        print(found.text)
    return 0 if found.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
