"""The forward pass of few tokens on a CPU: all that lies between two attentions is one compiled call.

Hidden states are float32 here, whatever the type of the weights, and weights are read once, as they are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moorage.kernels.quantized_linear import PANEL, QuantizedMatrix
from moorage.kernels.quantized_linear.cpu import FEW_ROWS
from moorage.kernels.step_program import Gate, Program, Rows, run_program
from moorage.workers.gpu.model.activations import SWISH_LIMIT, SWISH_SLOPE
from moorage.workers.gpu.model.linear import linear
from moorage.workers.gpu.model.parameters import LayerWeights, MlpWeights, Norm
from moorage.workers.gpu.model.quantized import Matrix, ReorderedMatrix, StackedMatrix
from moorage.workers.spec import Activation, ModelSpec, NormKind, QkNorm, Residual

if TYPE_CHECKING:
    from moorage.workers.gpu.model.decoder import Attend, Decoder

MOST_TOKENS = 16
"""Most tokens of a step. With more, torch's products of many rows are faster."""
_GATES = {
    Activation.SILU: Gate.SILU,
    Activation.GELU_TANH: Gate.GELU_TANH,
    Activation.CLAMPED_SWISH: Gate.CLAMPED_SWISH,
}


class HostStep:
    """See StepGraphs. It keeps the addresses of the decoder's weights, which must not be replaced."""

    def __init__(self, decoder: Decoder) -> None:
        """Writes the programs of all layers. `runs` must hold for the decoder."""
        self._decoder, spec = decoder, decoder.spec
        self._hidden = Rows.empty(MOST_TOKENS, spec.hidden_size)
        self._attended = Rows.empty(MOST_TOKENS, spec.num_heads * spec.head_dim)
        self._final = Rows.empty(MOST_TOKENS, spec.hidden_size)
        num_channels = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        self._heads = [Rows.empty(MOST_TOKENS, num_channels) for _ in decoder.weights.layers]
        writer = _Writer(spec, self._hidden, self._attended)
        programs = []
        for index, layer in enumerate(decoder.weights.layers):
            writer.inputs(layer, self._heads[index])
            programs.append(writer.take())
            writer.outputs(layer)
        writer.norm(self._hidden, decoder.weights.norm, self._final)
        programs.append(writer.take())
        self._programs = programs
        self._tables = [program.tables() for program in programs]
        self._warm_up()

    def _warm_up(self) -> None:
        """Compiles or loads what steps call, so that the first request does not wait for it."""
        decoder, spec = self._decoder, self._decoder.spec
        run_program(*Program().tables(), 0)
        decoder.logits(self._final.tensor[:1])
        many = torch.zeros(FEW_ROWS + 1, spec.hidden_size, dtype=decoder.dtype)
        linear(many, decoder.weights.layers[0].qkv)

    @staticmethod
    def runs(decoder: Decoder) -> bool:
        """Whether every layer can be written as a program: no experts, and channels in whole vectors."""
        weights = [
            matrix
            for layer in decoder.weights.layers
            if isinstance(layer.feed_forward, MlpWeights)
            for matrix in (layer.qkv, layer.output, layer.feed_forward.gate_up, layer.feed_forward.down)
        ]
        return (
            len(weights) == 4 * len(decoder.weights.layers)
            and all(_fits(weight) for weight in weights)
            and decoder.device.type == "cpu"
        )

    def takes(self, num_tokens: int) -> bool:
        """See StepGraphs."""
        return 0 < num_tokens <= MOST_TOKENS

    def forward(self, token_ids: Tensor, attend: Attend) -> Tensor:
        """See Decoder.forward; in float32."""
        count, spec = len(token_ids), self._decoder.spec
        self._hidden.tensor[:count] = self._decoder.embed(token_ids)
        attended = self._attended.tensor[:count].view(count, spec.num_heads, spec.head_dim)
        run_program(*self._tables[0], count)
        for index, heads in enumerate(self._heads):
            rows = heads.tensor[:count].view(count, -1, spec.head_dim)
            attended.copy_(attend(index, *self._decoder.split(rows)))
            run_program(*self._tables[index + 1], count)
        return self._final.tensor[:count].clone()


def _fits(weight: Matrix) -> bool:
    if isinstance(weight, StackedMatrix):
        return all(_fits(part) for part in weight.parts)
    return weight.shape[0] % PANEL == 0 and weight.shape[1] % PANEL == 0


class _Writer:
    """Writes operations, and has the arrays that they share."""

    def __init__(self, spec: ModelSpec, hidden: Rows, attended: Rows) -> None:
        self._spec, self._hidden, self._attended = spec, hidden, attended
        self._program = Program()
        self._normed, self._added, self._more = (Rows.empty(MOST_TOKENS, spec.hidden_size) for _ in range(3))
        self._gate_up = Rows.empty(MOST_TOKENS, 2 * spec.intermediate_size)
        self._inner = Rows.empty(MOST_TOKENS, spec.intermediate_size)

    def take(self) -> Program:
        """What was written since the last call."""
        program, self._program = self._program, Program()
        return program

    def inputs(self, layer: LayerWeights, heads: Rows) -> None:
        """Queries, keys and values of a layer."""
        normed = self._hidden
        if layer.input_norm is not None:
            normed = self._normed
            self.norm(self._hidden, layer.input_norm, normed)
        self._linear(normed, layer.qkv, heads, layer.qkv_bias)
        spec = self._spec
        query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        for first, width, weight in ((0, query, layer.q_norm), (query, key, layer.k_norm)):
            if weight is not None:
                part = heads.columns(first, width)
                size = width if spec.qk_norm is QkNorm.ALL_HEADS else spec.head_dim
                centred = spec.qk_norm is QkNorm.HEAD_LAYER
                self._program.norm(part, weight, None, part, spec.rms_norm_eps, size=size, centred=centred)

    def outputs(self, layer: LayerWeights) -> None:
        """Adds what a layer's attention and feed-forward part give to the hidden states; see `residual`."""
        hidden, added, more, normed = self._hidden, self._added, self._more, self._normed
        residual, scale = self._spec.residual, self._spec.residual_scale
        self._linear(self._attended, layer.output, added, layer.output_bias)
        if residual is Residual.PARALLEL:
            self.norm(hidden, layer.input_norm, normed)
            self._feed_forward(layer, normed, more)
            self._program.add(hidden, more, scale)
            self._program.add(hidden, added, scale)
            return
        if layer.attention_out_norm is not None:
            self.norm(added, layer.attention_out_norm, added)
        self._program.add(hidden, added, scale)
        inputs = hidden
        if layer.post_norm is not None:
            inputs = normed
            self.norm(hidden, layer.post_norm, normed)
        self._feed_forward(layer, inputs, more)
        if layer.mlp_out_norm is not None:
            self.norm(more, layer.mlp_out_norm, more)
        self._program.add(hidden, more, scale)

    def norm(self, x: Rows, norm: Norm | None, out: Rows) -> None:
        """The norm of hidden states."""
        assert norm is not None
        spec = self._spec
        centred = spec.norm is NormKind.LAYER
        self._program.norm(x, norm.weight, norm.bias, out, spec.rms_norm_eps, size=x.width, centred=centred)

    def _feed_forward(self, layer: LayerWeights, x: Rows, out: Rows) -> None:
        mlp = layer.feed_forward
        assert isinstance(mlp, MlpWeights)
        self._linear(x, mlp.gate_up, self._gate_up, mlp.gate_up_bias)
        self._program.gate(
            _GATES[self._spec.activation], self._gate_up, self._inner, SWISH_SLOPE, SWISH_LIMIT
        )
        self._linear(self._inner, mlp.down, out, mlp.down_bias)

    def _linear(self, x: Rows, weight: Matrix, out: Rows, bias: Tensor | None) -> None:
        bias = None if bias is None else bias.float()
        if isinstance(weight, StackedMatrix):
            first = 0
            for part in weight.parts:
                rows = part.shape[0]
                more = None if bias is None else bias[first : first + rows]
                self._linear(x, part, out.columns(first, rows), more)
                first += rows
        elif isinstance(weight, ReorderedMatrix):
            ordered = Rows.empty(MOST_TOKENS, x.width)
            self._program.reorder(x, weight.order, ordered)
            self._program.linear(ordered, weight.matrix, out, bias)
        else:
            assert isinstance(weight, Tensor | QuantizedMatrix)
            self._program.linear(x, weight, out, bias)
