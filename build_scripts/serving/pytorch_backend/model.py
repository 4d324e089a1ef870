"""The `pytorch` backend of the embedded server: runs TorchScript for `platform: "pytorch_libtorch"` models.

NVIDIA's containers have a C++ backend for this; the embedded server has none, so Triton runs this file in its place (a
"Python-based backend"). It honours what the C++ one honours for models like ours and refuses, at load, what it does
not. Four things it adds: if the model exports `check_inputs`, a request with bad values gets a 400 of its own; after a
batch of several requests it waits a moment for the next batch to fill; it keeps freed memory for a while; and on a CPU
it lets those go first who take requests in and refuse them.
"""

import ctypes
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

KNOWN_PARAMETERS = {
    "INTRA_OP_THREAD_COUNT",
    "INTER_OP_THREAD_COUNT",
    "INFERENCE_MODE",
    "DISABLE_OPTIMIZED_EXECUTION",
    "release",  # says what is loaded; nothing depends on it
}
DTYPES = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
}
UNSUPPORTED_SETTINGS = ("sequence_batching", "model_operations")
# How long the next batch may fill, as a share of the time that this one took, and at most. Measured with 4 and 16
# clients on 2 cores: batches of 3.9 and 15.8 instead of 2.0 and 8.0, 15 to 20 % and 1 to 13 % more requests/s.
FILLING_SHARE, FILLING_LIMIT_S = 0.15, 0.004
# The nice value of a classifier on the CPU, beside everybody else's 0. At 20 times the requests that 2 cores can serve,
# a refusal took 3 ms at the median and 16 at the 99th percentile, instead of 8 and 28, and 6 to 12 % fewer requests
# were served meanwhile. Without overload nothing changed, at 1, 4 and 16 clients.
NICE = 5
# By itself glibc gives the large tensors of a long text back to the system after each use and asks for them again: a
# text of 512 tokens took 1.45 times as long in bf16, 1.05 times in fp32. So blocks of up to 32 MiB, glibc's own limit,
# stay in the heap, and the heap does not shrink by itself. Names and numbers are those of mallopt, <malloc.h>.
MALLOPT = {"M_MMAP_THRESHOLD": (-3, 32 << 20), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}
# How often all that is free goes back, which takes 20 ms. Without it a rare large batch leaves its holes for good:
# after 11,000 and 45,000 requests in mixed batches 598 and 638 MiB; with it 577 and 591, at the same speed.
TRIM_INTERVAL_S = 10.0


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        """Nothing is guessed: the configuration must be complete."""
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = read_parameters(config)
        set_threads(parameters)
        self.inputs = positional(config["input"], "INPUT")
        self.outputs = positional(config["output"], "OUTPUT")
        self.device = device_of(args["model_instance_kind"], args["model_instance_device_id"])
        if self.device.type == "cpu":
            yield_to_others()  # before torch starts its threads: they inherit it
        self.max_batch_size = config["max_batch_size"]
        self.inference_mode = boolean(parameters, "INFERENCE_MODE", default=True)
        self.optimized = not boolean(parameters, "DISABLE_OPTIMIZED_EXECUTION", default=False)
        file = config.get("default_model_filename") or "model.pt"
        path = Path(args["model_repository"]) / args["model_version"] / file
        self.model = torch.jit.load(str(path), map_location=self.device).eval()
        self.check_inputs = getattr(self.model, "check_inputs", None)
        libc = ctypes.CDLL(None)  # glibc; tritonserver runs on nothing else
        for number, value in MALLOPT.values():
            libc.mallopt(number, value)
        self.trim_heap = libc.malloc_trim
        self.next_trim = time.monotonic() + TRIM_INTERVAL_S

    def execute(self, requests):
        """One response per request, in order.

        Several are sent before this returns. Their clients' next requests then find this instance busy for a moment
        longer and share a batch with those that wait already; otherwise two halves of the clients would take turns. A
        client that is alone waits for nothing, nor does anybody when the batch was full. Memory is given back in such a
        moment too.
        """
        began = time.monotonic()
        trim = began >= self.next_trim
        if len(requests) == 1 and not trim:
            return self.answer(requests)
        senders = [request.get_response_sender() for request in requests]
        for sender, response in zip(senders, self.answer(requests)):
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        if trim:
            self.trim_heap(0)
            self.next_trim = time.monotonic() + TRIM_INTERVAL_S
        elif len(requests) < self.max_batch_size:
            time.sleep(min(FILLING_SHARE * (time.monotonic() - began), FILLING_LIMIT_S))
        return None

    def answer(self, requests):
        """One response per request, in order; requests are joined into one batch, which is split again."""
        try:
            return self.run(requests)
        except Exception as problem:
            if len(requests) > 1:  # find out whose fault it is: the others must get their answers
                return [response for request in requests for response in self.answer([request])]
            error = pb_utils.TritonError(f"PyTorch execute failure: {problem}", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=error)]

    def run(self, requests):
        columns = [[input_array(request, spec["name"]) for request in requests] for spec in self.inputs]
        rows = self.rows_of(columns[0])
        tensors = [join(column).to(self.device) for column in columns]
        with (
            torch.inference_mode(self.inference_mode),
            torch.no_grad(),  # after it: inference_mode(False) turns gradients on
            torch.jit.optimized_execution(self.optimized),
        ):
            complaints = self.check_inputs(*tensors) if self.check_inputs else []
            if complaints:
                return self.answer_the_rest(requests, [next(filter(None, complaints[span]), "") for span in rows])
            outputs = self.model(*tensors)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        arrays = [to_be_sent(spec, output) for spec, output in zip(self.outputs, outputs, strict=True)]
        if self.max_batch_size and any(len(array) != rows[-1].stop for array in arrays):
            raise ValueError(f"a batch of {rows[-1].stop} rows got outputs of {[len(array) for array in arrays]}")
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(spec["name"], array[span]) for spec, array in zip(self.outputs, arrays)]
            )
            for span in rows
        ]

    def rows_of(self, arrays):
        """The rows of the joined batch that belong to each request, as slices."""
        if not self.max_batch_size:
            return [slice(None)]
        ends = itertools.accumulate(map(len, arrays))
        return [slice(end - len(array), end) for end, array in zip(ends, arrays)]

    def answer_the_rest(self, requests, messages):
        """messages: one per request, empty if it is good. Bad requests get a 400, the others their answer."""
        good = [request for request, message in zip(requests, messages) if not message]
        answers = iter(self.run(good) if good else [])
        invalid = pb_utils.TritonError.INVALID_ARG
        return [
            pb_utils.InferenceResponse(error=pb_utils.TritonError(message, invalid)) if message else next(answers)
            for message in messages
        ]


def read_parameters(config):
    """Parameter name -> string. Raises what stops the load if a setting would otherwise be ignored."""
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    unknown = sorted(parameters.keys() - KNOWN_PARAMETERS)
    unknown += [setting for setting in UNSUPPORTED_SETTINGS if config.get(setting)]
    if unknown:
        raise pb_utils.TritonModelException(
            f"model '{config['name']}': the embedded pytorch backend does not support {', '.join(unknown)}; "
            f"it knows the parameters {', '.join(sorted(KNOWN_PARAMETERS))}. Remove it, or use NVIDIA's container"
        )
    return parameters


def boolean(parameters, name, *, default):
    """A parameter as the C++ backend reads it."""
    value = parameters.get(name, str(default)).lower()
    if value not in ("true", "1", "false", "0"):
        raise pb_utils.TritonModelException(f"{name} is {parameters[name]!r}; expected true or false")
    return value in ("true", "1")


def set_threads(parameters):
    """Process-wide, as in the C++ backend; here every instance is a process of its own."""
    setters = {"INTRA_OP_THREAD_COUNT": torch.set_num_threads, "INTER_OP_THREAD_COUNT": torch.set_num_interop_threads}
    for name, set_number in setters.items():
        if name in parameters:
            if not parameters[name].isdecimal() or int(parameters[name]) == 0:
                raise pb_utils.TritonModelException(f"{name} is {parameters[name]!r}; expected a number from 1 on")
            set_number(int(parameters[name]))


def yield_to_others():
    """Lower the priority of this thread and of those that it starts. Whoever started us may have lowered it further."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))


def positional(specs, prefix):
    """Inputs or outputs in the order of their numbers: INPUT__0, INPUT__1 …"""
    by_name = {spec["name"]: spec for spec in specs}
    names = [f"{prefix}__{index}" for index in range(len(specs))]
    if by_name.keys() != set(names):
        raise pb_utils.TritonModelException(f"expected tensors named {', '.join(names)}, found {', '.join(by_name)}")
    for spec in specs:
        if spec["data_type"] not in DTYPES:
            raise pb_utils.TritonModelException(f"{spec['name']}: {spec['data_type']} is not supported")
    return [by_name[name] for name in names]


def device_of(kind, device_id):
    """The torch device of an instance; no number is written into the model file, so this alone decides."""
    if kind == "GPU":
        return torch.device("cuda", int(device_id))
    if kind == "CPU":
        return torch.device("cpu")
    raise pb_utils.TritonModelException(f"instance kind {kind} is not supported; use KIND_CPU or KIND_GPU")


def input_array(request, name):
    """A view of the request's tensor, in the memory that it came in. Triton hands Python models main memory only."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def join(arrays):
    """One batch from the requests' arrays; a single request is not copied."""
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


def to_be_sent(spec, output):
    """An output as a numpy array. Raises TypeError if it is not of the type that the configuration promises."""
    if output.dtype != DTYPES[spec["data_type"]]:
        raise TypeError(f"{spec['name']} is {output.dtype}, the configuration says {spec['data_type']}")
    return output.cpu().contiguous().numpy()
