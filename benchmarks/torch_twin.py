"""slm_np's model in plain PyTorch, for the benchmarks to compete with and the tests to compare with.

From the same weights it computes the same logits, loss, gradients and updates. It is a fair competitor: PyTorch's fused
attention, norms, activations, loss and AdamW, its own (out, in) storage of linear weights, and on request
`torch.compile` and bfloat16 autocast. Only `load`, `weights` and `gradients` use slm_np's names and (in, out) shapes.
Sizes: B batch, T steps, D width, V vocabulary.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu-tanh": lambda x: F.gelu(x, approximate="tanh")}


class Norm(nn.Module):
    """Layer norm (with a bias only if `config.bias`), RMS norm, or the identity."""

    def __init__(self, config):
        super().__init__()
        self.kind, self.eps, self.shape = config.norm, config.norm_eps, (config.n_embd,)
        self.weight = nn.Parameter(torch.ones(self.shape)) if config.norm != "none" else None
        self.bias = nn.Parameter(torch.zeros(self.shape)) if config.norm == "layernorm" and config.bias else None

    def forward(self, x):
        if self.kind == "layernorm":
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.shape, self.weight, self.eps) if self.kind == "rmsnorm" else x


class Attention(nn.Module):
    """Causal attention with grouped queries. The columns of `qkv` are queries | keys | values."""

    def __init__(self, config, columns):
        super().__init__()
        self.heads, self.kv_heads, self.width = config.n_head, config.n_kv_head, config.head_dim
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.n_embd, (self.heads + 2 * self.kv_heads) * self.width, bias=config.bias)
        self.output = nn.Linear(self.heads * self.width, columns, bias=config.bias)

    def forward(self, x, rotation):
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.width).transpose(1, 2)
        if rotation is None:
            q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
        else:  # queries and keys are rotated together: half as many small operations
            qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), 1)
            cos, sin = rotation
            a, b = qk.chunk(2, -1)
            q, k = torch.cat((a * cos - b * sin, b * cos + a * sin), -1).split((self.heads, self.kv_heads), 1)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.output(out.transpose(1, 2).reshape(B, T, -1))


class Recurrence(nn.Module):
    """h_t = B x_t + A h_(t-1),   y_t = C silu(h_t) + D x_t.   The time loop has A h alone."""

    def __init__(self, config, columns):
        super().__init__()
        width, size = config.n_embd, config.recurrence_size
        self.input, self.state = nn.Linear(width, size, bias=False), nn.Linear(size, size, bias=False)
        self.output, self.skip = nn.Linear(size, columns, bias=False), nn.Linear(width, columns, bias=False)

    def forward(self, x, rotation):
        states, h = [], None
        for step in self.input(x).unbind(1):
            h = step if h is None else step + self.state(h)
            states.append(h)
        return self.output(F.silu(torch.stack(states, 1))) + self.skip(x)


class Mamba(nn.Module):
    """The mixer of Hugging Face's transformers, which is a time loop unless its CUDA kernels are installed."""

    def __init__(self, config, columns):
        super().__init__()
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        mamba = MambaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            state_size=config.ssm_state_size,
            num_hidden_layers=1,
            expand=1,
            conv_kernel=config.conv_kernel,
            use_bias=config.bias,
            time_step_rank=config.time_step_rank,
        )
        mamba.intermediate_size = config.n_inner
        self.mixer = MambaMixer(mamba, 0)
        if columns != config.n_embd:
            self.mixer.out_proj = nn.Linear(config.n_inner, columns, bias=config.bias)

    def forward(self, x, rotation):
        return self.mixer(x)


MIXERS = {"A": ("attention", Attention), "M": ("mamba", Mamba), "S": ("recurrence", Recurrence)}


class FeedForward(nn.Module):
    """Two matrices with an activation in between; for swiglu the hidden columns are gate | up."""

    def __init__(self, config):
        super().__init__()
        self.activation = config.feed_forward
        self.input = nn.Linear(
            config.n_embd, config.n_hidden * (2 if self.activation == "swiglu" else 1), bias=config.bias
        )
        self.output = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        x = self.input(x)
        if self.activation == "swiglu":
            gate, up = x.chunk(2, -1)
            return self.output(F.silu(gate) * up)
        return self.output(ACTIVATIONS[self.activation](x))


class Head(nn.Linear):
    """x W^T, W (V, width), without a bias; the mlp head has a matrix and a SiLU before it."""

    def __init__(self, config):
        mlp = config.head == "mlp"
        super().__init__(config.head_hidden if mlp else config.n_embd, config.vocab_size, bias=False)
        self.input = nn.Linear(config.n_embd, config.head_hidden, bias=config.bias) if mlp else None

    def forward(self, x):
        return super().forward(x if self.input is None else F.silu(self.input(x)))


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)) if there is a feed-forward; without residuals, neither sum."""

    def __init__(self, config, layer):
        super().__init__()
        self.residual, self.logits = config.residual, config.head == "none" and layer == config.n_layer - 1
        self.dropout = 0.0 if self.logits else config.dropout
        self.name, kind = MIXERS[config.letters[layer]]
        self.mixer_norm = Norm(config)
        setattr(self, self.name, kind(config, config.vocab_size if self.logits else config.n_embd))
        self.feed_forward = None
        if config.feed_forward != "none":
            self.feed_forward_norm = Norm(config)
            self.feed_forward = FeedForward(config)

    def add(self, x, branch):
        branch = F.dropout(branch, self.dropout, self.training)
        return x + branch if self.residual else branch

    def forward(self, x, rotation):
        x = self.add(x, getattr(self, self.name)(self.mixer_norm(x), rotation))
        return x if self.feed_forward is None else self.add(x, self.feed_forward(self.feed_forward_norm(x)))


class Twin(nn.Module):
    """The model of a ModelConfig. Initial weights are N(0, 0.02), biases 0."""

    def __init__(self, config, dtype=torch.float32):
        super().__init__()
        V, T, D = config.vocab_size, config.block_size, config.n_embd
        self.config = config
        self.embedding = nn.Embedding(V, D)
        self.positions = nn.Embedding(T, D) if config.positions == "learned" else None
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.n_layer))
        self.norm = Norm(config) if config.head != "none" else None
        self.head = Head(config) if config.head in ("linear", "mlp") else None
        self.transposed = {
            f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Linear)
        } - {"head.weight"}
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        time = torch.arange(T, dtype=torch.float64)[:, None]
        if config.positions == "rotary":
            angle = time * config.rope_theta ** (
                -torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
            )
            table = torch.stack((angle.cos(), angle.sin()))
        elif config.positions == "sinusoidal":
            angle = time / 10000.0 ** (torch.arange(0, D, 2, dtype=torch.float64) / D)
            table = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :D]
        else:
            table = None
        self.register_buffer("table", table, persistent=False)
        self.to(dtype)

    def forward(self, tokens):
        """Logits (B, T, V) of int64 `tokens` (B, T)."""
        T = tokens.shape[1]
        x, rotation = self.embedding(tokens), None
        if self.config.positions == "learned":
            x = x + self.positions.weight[:T]
        elif self.config.positions == "sinusoidal":
            x = x + self.table[:T]
        elif self.config.positions == "rotary":
            rotation = self.table[:, :T]
        x = F.dropout(x, self.config.dropout, self.training)
        for layer in self.layers:
            x = layer(x, rotation)
        if self.config.head == "none":
            return x
        x = self.norm(x)
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)

    def loss(self, tokens, targets):
        """Mean cross-entropy in nats over all B T `targets`."""
        return F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())

    def _reshaped(self, name, tensor):
        """A tensor in slm_np's shape from PyTorch's, or the other way round.

        Weights of nn.Linear are transposed, except for the head's last one, (V, width) in both; so is Mamba's A_log.
        Mamba's convolution is (E, 1, K) in PyTorch and (K, E) in slm_np.
        """
        if name.endswith("conv1d.weight"):
            return tensor[:, 0].T if tensor.ndim == 3 else tensor.T[:, None]
        return tensor.T if name in self.transposed or name.endswith("A_log") else tensor

    def tensors(self):
        """(slm_np's name, PyTorch's name, parameter) of each."""
        for name, parameter in self.named_parameters():
            yield name.replace(".mamba.mixer.", ".mamba."), name, parameter

    def weights(self):
        """{name: array}: copies of the weights, with slm_np's names and shapes."""
        return {
            ours: np.array(self._reshaped(name, weight.detach()).numpy(), order="C")
            for ours, name, weight in self.tensors()
        }

    def gradients(self):
        """{name: array}: copies of the gradients after `loss(...).backward()`, with slm_np's names and shapes."""
        return {
            ours: np.array(self._reshaped(name, weight.grad).numpy(), order="C")
            for ours, name, weight in self.tensors()
        }

    def load(self, arrays):
        """Copy weights with slm_np's names and shapes. Returns self. ValueError if names or shapes are others."""
        shapes = {ours: tuple(self._reshaped(name, weight).shape) for ours, name, weight in self.tensors()}
        if wrong := shapes.items() ^ {name: np.shape(array) for name, array in arrays.items()}.items():
            raise ValueError(f"these names and shapes are only in the twin or only in `arrays`: {sorted(wrong)}")
        with torch.no_grad():
            for ours, name, weight in self.tensors():
                weight.copy_(self._reshaped(name, torch.tensor(np.asarray(arrays[ours]))))
        return self


class Trainer:
    """Updates of a Twin by fused AdamW, on the device of the twin.

    decay      which tensors weight decay applies to: "matrices" (those with two axes) or "all"
    grad_clip  limit of the norm of the whole gradient; 0 is off
    compiled   compute the loss with `torch.compile`, which needs a C++ compiler, in its `mode`
    bfloat16   compute the loss under autocast; weights and moments keep the twin's type
    """

    def __init__(
        self,
        twin,
        learning_rate=1e-3,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        decay="matrices",
        grad_clip=1.0,
        compiled=False,
        bfloat16=False,
        mode=None,
    ):
        self.twin, self.grad_clip, self.bfloat16 = twin, grad_clip, bfloat16
        self.loss = torch.compile(twin.loss, dynamic=False, mode=mode) if compiled else twin.loss
        groups = {True: [], False: []}
        for name, parameter in twin.named_parameters():
            groups[parameter.ndim >= 2 and not name.endswith("A_log") or decay == "all"].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [dict(params=groups[True], weight_decay=weight_decay), dict(params=groups[False], weight_decay=0.0)],
            lr=learning_rate,
            betas=(beta1, beta2),
            eps=eps,
            fused=True,
        )

    def train_step(self, tokens, targets):
        """One update. Returns the loss before it in nats: a float or, on a GPU, a tensor, so the host need not wait.

        tokens, targets: arrays or tensors of integers (B, T)
        """
        device = next(self.twin.parameters()).device
        tokens, targets = (torch.as_tensor(x).long().to(device, non_blocking=True) for x in (tokens, targets))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(tokens, targets)
        loss.backward()
        if self.grad_clip:
            nn.utils.clip_grad_norm_(self.twin.parameters(), self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item() if device.type == "cpu" else loss.detach()
