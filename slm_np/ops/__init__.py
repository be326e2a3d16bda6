"""Every operation with its derivative beside it: `<op>_forward` and `<op>_backward`.

Outputs come first, then inputs; gradients stand in the order of the forward's inputs. Nothing is allocated: the caller
owns all memory. In the docstrings `=` overwrites and `+=` accumulates. The kernel set of the arrays' device does the
work; the NumPy set (`kernels/numpy`) is the same mathematics in plain code.
"""

from slm_np.ops.activation import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    silu_backward,
    silu_forward,
    swiglu_backward,
    swiglu_forward,
)
from slm_np.ops.attention import attention_backward, attention_forward, attention_step
from slm_np.ops.convert import convert
from slm_np.ops.convolution import convolution_backward, convolution_forward
from slm_np.ops.dropout import Dropout, dropout_backward, dropout_forward, dropout_key
from slm_np.ops.embedding import embedding_backward, embedding_forward, sinusoidal_table
from slm_np.ops.linear import (
    linear_backward,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_transposed_backward,
    linear_transposed_forward,
)
from slm_np.ops.loss import (
    head_cross_entropy_backward,
    head_cross_entropy_forward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from slm_np.ops.norm import (
    head_norm_backward,
    head_norm_forward,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from slm_np.ops.recurrence import batch_major, linear_recurrence_backward, linear_recurrence_forward, time_major
from slm_np.ops.residual import accumulate
from slm_np.ops.rotary import rotary_backward, rotary_forward, rotary_table
from slm_np.ops.scan import selective_scan_backward, selective_scan_forward
