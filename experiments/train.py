"""Train a recipe: python experiments/train.py emoji.decoder train.steps=500 model.unet.channels=96 --run runs/decoder

Settings change fields of the recipe by name.  The same command continues a run that was cut off.  Several processes:
`accelerate launch experiments/train.py ...` or torchrun.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from experiments.recipes import Recipe, find  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="for instance emoji.decoder; an unknown name lists all")
    parser.add_argument("settings", nargs="*", help="name=value, for instance train.steps=500")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/<recipe>)")
    parser.add_argument("--init", type=Path, help="run folder whose averaged weights a new run starts from")
    parser.add_argument("--show", action="store_true", help="print the recipe as JSON and stop")
    options = parser.parse_intermixed_args(arguments)
    try:
        recipe = find(options.recipe).override(*options.settings)
        if options.show:
            print(recipe.to_json(), end="")
            return 0
        run(recipe, options.run or Path("runs") / options.recipe, options.init)
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
    task.model.load_state_dict(trained.ema)
    task.model.eval()
    if main_process:
        (run_dir / "recipe.json").write_text(recipe.to_json())
        recipe.finish(task.model, run_dir)


if __name__ == "__main__":
    raise SystemExit(main())
