"""Services that the ensemble replaces: a Flask route that tokenizes one text and runs the model on it.

    python -m build_scripts.benchmarks.flask_service --kind padded --checkpoint ./my-checkpoint --port 8000

Conventional code, served by waitress. Kinds:
- padded: Hugging Face's eager fp32 model, every text padded to max_length;
- trimmed: the same model without padding; the kinds below do not pad either;
- onnx, onnx-int8: the exported model in ONNX Runtime, in fp32 or quantized to int8;
- openvino: the exported model in OpenVINO, at its default precision.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from flask import Flask, jsonify, request
from waitress import serve

from build_scripts.convert.checkpoint import Checkpoint, load
from build_scripts.convert.parity import probabilities
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cores

KINDS = ("padded", "trimmed", "onnx", "onnx-int8", "openvino")
# Waitress's default number of threads; each handles one text at a time.
WAITRESS_THREADS = 4


def application(checkpoint: Checkpoint, logits: Callable[[dict[str, torch.Tensor]], torch.Tensor], padded: bool):
    """The Flask application. logits: maps input_ids and attention_mask, (1, tokens) int64, to (1, labels) fp32."""
    app = Flask(__name__)
    padding = "max_length" if padded else False

    @app.post("/classify")
    def classify():
        text = request.get_json()["text"]
        inputs = checkpoint.tokenizer(
            text, truncation=True, max_length=checkpoint.max_length, padding=padding, return_tensors="pt"
        )
        with torch.inference_mode():
            found = probabilities(logits(dict(inputs))[0], checkpoint.activation)
        return jsonify(class_id=int(found.argmax()), probabilities=found.tolist())

    return app


def eager(checkpoint: Checkpoint) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Hugging Face's model, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint.model.to(device)
    return lambda inputs: model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits.cpu()


def onnx_runtime(file: Path) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """The exported model on the CPU, with ONNX Runtime's default optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in names})[0])


def openvino(file: Path, precision: str = "") -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """The exported model on the CPU, compiled for latency: all cores work on one text.

    precision: in OpenVINO's terms; by default OpenVINO uses bf16 where the CPU has it.
    """
    from openvino import Core

    options = {"PERFORMANCE_HINT": "LATENCY", **({"INFERENCE_PRECISION_HINT": precision} if precision else {})}
    compiled = Core().compile_model(str(file), "CPU", options)
    names = [port.any_name for port in compiled.inputs]
    # A new infer request per call: threads must not share one.
    return lambda inputs: torch.from_numpy(
        compiled.create_infer_request().infer({name: inputs[name].numpy() for name in names})[0]
    )


def quantize(file: Path, into: Path) -> None:
    """Dynamic int8 with one scale per tensor: weights are quantized now, activations at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(file), str(into), weight_type=QuantType.QInt8)


class Logits(torch.nn.Module):
    """The module to export: two tensors in, logits out."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export_onnx(checkpoint: Checkpoint, file: Path) -> None:
    """Export Hugging Face's fp32 model with dynamic batch and token dimensions. Raises ServingError if torch cannot."""
    example = checkpoint.tokenizer(["one", "a longer text"], padding=True, return_tensors="pt")
    free = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        # torch 2.13 recommends its newer exporter, which needs two more packages and gives the same graph.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                Logits(checkpoint.model).eval(),  # the exporter would otherwise leave the model in training mode
                (example["input_ids"], example["attention_mask"]),
                str(file),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_axes={"input_ids": free, "attention_mask": free, "logits": {0: "batch"}},
                opset_version=17,
                dynamo=False,
            )
        except Exception as error:  # torch raises many types, mostly RuntimeError
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ServingError(
                f"torch cannot export this {checkpoint.model.config.model_type} to ONNX ({reason})"
            ) from error


def main() -> int:
    parser = argparse.ArgumentParser(description="A conventional classification service: one text per request.")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--onnx", type=Path, help="exported model, for the kinds onnx, onnx-int8 and openvino")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=WAITRESS_THREADS)
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    checkpoint = load(arguments.checkpoint, arguments.max_length)
    if arguments.kind.startswith("onnx"):
        logits = onnx_runtime(arguments.onnx)
    else:
        logits = openvino(arguments.onnx) if arguments.kind == "openvino" else eager(checkpoint)
    app = application(checkpoint, logits, padded=arguments.kind == "padded")
    with app.test_client() as client:  # the first call is slow
        client.post("/classify", json={"text": "warm up"})
    serve(app, host="127.0.0.1", port=arguments.port, threads=arguments.threads, _quiet=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
