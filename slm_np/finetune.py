"""Continue training on new data: `python -m slm_np.finetune --base RUN --data DATA`."""

import argparse

from slm_np.cli import flags
from slm_np.cli.ranks import in_ranks
from slm_np.cli.settings import add_source, settings
from slm_np.config import MIN_SHARE, LoraConfig, ModelConfig, TrainConfig
from slm_np.errors import UserError, command
from slm_np.training import finetuning
from slm_np.training.finetuning import BLOCK_SIZE, CHANGEABLE, EPOCHS, LORA_RATE, OTHERS, RATE_SHARE
from slm_np.words import quoted

FULL_RATE, ADAPTER_RATE = (share * OTHERS.learning_rate for share in (RATE_SHARE, LORA_RATE * RATE_SHARE))
DESCRIPTION = f"""\
Continue training on new data: the base's weights, tokenizer and model, a fresh schedule. With --lora-rank only
low-rank adapters are trained, which takes less memory and a third less time. In a .jsonl file with messages, or prompt
and completion, the loss is masked to the assistant's tokens.

Defaults that differ from train's: {EPOCHS:g} epochs; optimizer, batch size, weight decay, clipping, seed and device of
the base; a peak learning rate of {RATE_SHARE:g} times the base's and a lowest one of {MIN_SHARE:g} times that; warmup
over a tenth of the run (at most 100 updates). With --lora-rank the optimizer is AdamW, the rate {LORA_RATE} times as
high and weight decay 0. For a base of another program: a rate of {FULL_RATE:g} or, with --lora-rank,
{ADAPTER_RATE:g}; batches of {OTHERS.batch_size}, no weight decay, and a --block-size of {BLOCK_SIZE}, or its context
if that is shorter."""


def parser():
    p = flags.Parser(prog="slm-np finetune", description=DESCRIPTION)
    group = p.add_argument_group("run")
    group.add_argument(
        "--base", type=flags.path, metavar="MODEL", help="the model to start from: a run, or a model of another program"
    )
    add_source(group)
    flags.add_settings(p, TrainConfig, "training", defaults=dict(data="", out_dir="", epochs=EPOCHS))
    flags.add_settings(p, LoraConfig, "low-rank adapters")
    flags.add_settings(p, ModelConfig, "model", defaults=dict(block_size=BLOCK_SIZE))
    for action in p._actions:  # accepted but not shown, so that a message can say that the model stays as it is
        if action.dest in ModelConfig.__dataclass_fields__ and action.dest not in (*CHANGEABLE, "block_size"):
            action.help = argparse.SUPPRESS
    return p


@command
def main(argv=None):
    """Exit status: that of train."""
    args = parser().parse(argv)
    found = settings(args, LoraConfig)
    with in_ranks("slm_np.finetune", args, argv, found[2]):
        run(args, *found)


def run(args, preset, model, given, lora):
    """Finetune in a new run or resume one, by these settings."""
    if args.resume is not None:
        resume(args.resume, args.base, preset, model, given, lora)
        return
    if not args.base:
        raise UserError("--base is missing; name the model to start from")
    if not given.get("data"):
        raise UserError("--data is missing; name the new data")
    from slm_np.cli.launch import finetune_run
    from slm_np.data.token_files import check_given

    check_given(given["data"], {name: value for name, value in given.items() if name != "tokenizer"})
    base = finetuning.Base.load(args.base)
    finetuning.check_unchanged(base, preset, model, given)
    finetune_run(base, finetuning.finetuned(base, model, given, lora), given)


def resume(directory, base, preset, model, given, lora):
    """Resume a finetuned run. base: what --base names, only to check that it is the same."""
    from slm_np.cli.launch import resume_run
    from slm_np.cli.resume import directory_of, resumed
    from slm_np.formats.directories import writing
    from slm_np.ranks.current import world

    ranks = world()
    directory = ranks.on_rank_0(lambda: directory_of(directory, given.get("out_dir")))
    with ranks.entered_on_rank_0(writing(directory)):  # before its settings are read
        run = ranks.on_rank_0(lambda: resumed(directory, preset, model, given, lora))
        if not run.base:
            raise UserError(
                f"{directory} did not start from another run; resume it with "
                f"python -m slm_np.train --resume {quoted(directory)}"
            )
        if base:
            finetuning.check_same_base(directory, run, finetuning.Base.load(base))
        resume_run(run, directory)


if __name__ == "__main__":
    main()
