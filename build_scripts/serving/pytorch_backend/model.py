"""The `pytorch` backend of the embedded server: runs TorchScript for `platform: "pytorch_libtorch"` models.

NVIDIA's containers have a C++ backend for this; the embedded server has none, and Triton runs this file instead (a
"Python-based backend"). It honours those settings of the C++ backend that such models use, and refuses others at load.
It adds:
- a 400 for a request with bad values, if the model exports `check_inputs`;
- a short pause after a batch of several requests, in which the next batch fills;
- a heap that keeps freed memory for reuse, and returns it to the system at intervals;
- on a CPU, a lower priority than the frontend, and long work split into parts between which short texts overtake
  (`schedule` decides, `worker` computes; a GPU finishes any batch soon).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

# First in the path: the modules beside this file take precedence over installed ones.
sys.path.insert(0, str(Path(__file__).resolve().parent))
if TYPE_CHECKING:  # the path of these modules as mypy sees it
    from build_scripts.serving.pytorch_backend import model_config, tensors
    from build_scripts.serving.pytorch_backend.answers import PROBE_ID, Answers
    from build_scripts.serving.pytorch_backend.gauge import Gauge
    from build_scripts.serving.pytorch_backend.heap import Heap
    from build_scripts.serving.pytorch_backend.idle_threads import IdleThreads
    from build_scripts.serving.pytorch_backend.openmp import releaser
    from build_scripts.serving.pytorch_backend.schedule import Entry, Schedule
    from build_scripts.serving.pytorch_backend.worker import Waiting, Worker
else:
    import model_config
    import tensors
    from answers import PROBE_ID, Answers
    from gauge import Gauge
    from heap import Heap
    from idle_threads import IdleThreads
    from openmp import releaser
    from schedule import Entry, Schedule
    from worker import Waiting, Worker

# Pause in which the next batch fills: share of the last batch's time, and maximum. On 2 cores, 4 clients: batches of
# 3.9 instead of 2.0, and 15 to 20 % more requests/s. 16 clients: batches of 15.8 instead of 8.0, and 1 to 13 % more.
FILLING_SHARE, FILLING_LIMIT_S = 0.15, 0.004
# Nice value of a classifier on the CPU; the frontend has 0. At 20 times the capacity of 2 cores, refusals took 3 ms
# (p50) and 16 ms (p99) instead of 8 and 28. The price: 6 to 12 % fewer answers. Without overload, at 1, 4 and 16
# clients, it has no effect.
NICE = 5


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: object) -> object:
        """Completes nothing: the configuration must be complete."""
        return config

    def initialize(self, args: Mapping[str, str]) -> None:
        config: model_config.Config = json.loads(args["model_config"])
        parameters = model_config.read_parameters(config)
        model_config.set_threads(parameters)
        self.inputs = model_config.positional(config["input"], "INPUT")
        self.outputs = model_config.positional(config["output"], "OUTPUT")
        self.device = model_config.device_of(args["model_instance_kind"], args["model_instance_device_id"])
        if self.device.type == "cpu":
            lower_priority()  # before torch starts its threads, which inherit it
        self.max_batch_size: int = config["max_batch_size"]
        self.inference_mode = model_config.boolean(parameters, "INFERENCE_MODE", default=True)
        self.optimized = not model_config.boolean(parameters, "DISABLE_OPTIMIZED_EXECUTION", default=False)
        file = config.get("default_model_filename") or "model.pt"
        path = Path(args["model_repository"]) / args["model_version"] / file
        self.model = torch.jit.load(str(path), map_location=self.device).eval()
        self.check_inputs = getattr(self.model, "check_inputs", None)
        counted = self.max_batch_size > 0 and model_config.is_classifier(self.outputs)
        self.answers = Answers(config["name"], parameters.get("release", "")) if counted else None
        self.worker: Worker | None = None
        self.release = releaser()
        if self.device.type == "cpu" and self.max_batch_size > 1:
            gauge = Gauge(config["name"])
            schedule, threads = Schedule(self.max_batch_size), IdleThreads(torch.get_num_threads())
            self.worker = Worker(schedule, gauge, threads, self.compute, self.respond, self.pause, self.release)
        self.heap = Heap()

    def finalize(self) -> None:
        if self.worker:
            self.worker.finish()
        if self.answers:
            self.answers.close()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse] | None:
        """One response per request, in order; or None if responses go through senders, now or later.

        If the worker is idle, this thread computes requests that fit in one part: a single text needs no thread switch,
        and the next batch of short texts fills during the computation. While the worker computes a long text, which
        cannot be split, this thread computes the smallest requests.
        """
        began = time.monotonic()
        worker = self.worker
        costs = [self.costs_of(request) for request in requests] if worker else []
        if worker and not worker.leaves_to_caller(costs):
            beside = worker.beside(costs)
            if beside:
                with worker.threads.one():
                    self.send([requests[index] for index in beside])
            rest = [index for index in range(len(requests)) if index not in beside]
            if rest:
                self.hand_over(worker, [requests[index] for index in rest], [costs[index] for index in rest])
            return None
        tokens = sum(map(sum, costs))
        responses = None
        with worker.threads.chosen(tokens) if worker else contextlib.nullcontext():
            if len(requests) == 1 and not self.heap.is_due():
                responses = self.answer(requests)
            else:
                self.send(requests)
        if worker:
            worker.schedule.measured(tokens, time.monotonic() - began)
        if responses is None:
            self.pause(time.monotonic() - began, len(requests))
        return responses

    def send(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Answer the requests through their senders."""
        senders = [request.get_response_sender() for request in requests]
        for sender, response in zip(senders, self.answer(requests)):
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def pause(self, seconds: float, answered: int) -> None:
        """Sleep briefly after a batch of several requests, which took `seconds`; or return free memory instead.

        The answered clients' next requests then join the waiting ones. Otherwise the clients split into halves whose
        batches alternate. No pause follows a batch of one request or a full batch.
        """
        if self.heap.is_due():
            self.heap.trim()
        elif 1 < answered < self.max_batch_size:
            time.sleep(min(FILLING_SHARE * seconds, FILLING_LIMIT_S))

    def costs_of(self, request: pb_utils.InferenceRequest) -> list[int]:
        """Tokens of each row of a request: nonzero mask values, at least 1, as the model counts them.

        A model without a mask computes the whole width.
        """
        mask = tensors.input_array(request, self.inputs[min(1, len(self.inputs) - 1)]["name"])
        if len(self.inputs) == 1:
            return [max(1, mask[0].size)] * len(mask)
        if len(mask) == 1:
            return [max(1, int(np.count_nonzero(mask)))]
        return np.maximum(1, np.count_nonzero(mask.reshape(len(mask), -1), axis=1)).tolist()

    def hand_over(
        self, worker: Worker, requests: Sequence[pb_utils.InferenceRequest], costs: Sequence[list[int]]
    ) -> None:
        """Queue the requests for the worker; requests with bad values get their error now."""
        columns = [
            [np.array(tensors.input_array(request, spec["name"])) for request in requests] for spec in self.inputs
        ]
        waiting = [Waiting(request, arrays) for request, arrays in zip(requests, zip(*columns))]
        messages = self.complaints([tensors.join(column) for column in columns], self.rows_of(columns[0]))
        for one, message in zip(waiting, messages):
            if message:
                one.send(tensors.refusal(message))
        kind = [array.shape[1:] for array in waiting[0].columns]
        good = zip(waiting, costs, messages)
        self.release()
        worker.hand_over([Entry(one, cost, kind) for one, cost, message in good if not message])

    def answer(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """One response per request, in order. After a failure each request is tried alone."""
        try:
            return self.run(requests)
        except Exception as problem:
            if len(requests) > 1:
                return [response for request in requests for response in self.answer([request])]
            error = pb_utils.TritonError(f"PyTorch execute failure: {problem}", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=error)]

    def run(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Join the requests into one batch, compute it, and split the outputs."""
        columns = [[tensors.input_array(request, spec["name"]) for request in requests] for spec in self.inputs]
        rows = self.rows_of(columns[0])
        joined = [tensors.join(column) for column in columns]
        messages = self.complaints(joined, rows)
        if any(messages):
            return self.answer_the_rest(requests, messages)
        arrays = self.compute(joined)
        return [self.respond(request, [array[span] for array in arrays]) for request, span in zip(requests, rows)]

    def compute(self, columns: Sequence[np.ndarray]) -> list[np.ndarray]:
        """columns: (rows, width) per input. Returns (rows, …) per output."""
        with self.modes():
            outputs = self.model(*(torch.from_numpy(column).to(self.device) for column in columns))
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        arrays = [tensors.to_numpy(spec, output) for spec, output in zip(self.outputs, outputs, strict=True)]
        rows = len(columns[0])
        if self.max_batch_size and any(len(array) != rows for array in arrays):
            raise ValueError(f"a batch of {rows} rows got outputs of {[len(array) for array in arrays]}")
        return arrays

    def complaints(self, columns: Sequence[np.ndarray], rows: Sequence[slice]) -> list[str]:
        """The model's complaint about each request's inputs, or "". rows: a slice per request."""
        found: list[str] = []
        if self.check_inputs:
            with self.modes():
                found = self.check_inputs(*(torch.from_numpy(column).to(self.device) for column in columns))
        return [next(filter(None, found[span]), "") for span in rows]

    @contextlib.contextmanager
    def modes(self) -> Iterator[None]:
        """The configured execution modes, which torch keeps per thread."""
        with (
            torch.inference_mode(self.inference_mode),
            torch.no_grad(),  # after inference_mode: inference_mode(False) enables gradients
            torch.jit.optimized_execution(self.optimized),
        ):
            yield

    def respond(
        self, request: pb_utils.InferenceRequest | Waiting, arrays: Sequence[np.ndarray]
    ) -> pb_utils.InferenceResponse:
        """Count the answer to a request and build the response. arrays: its rows, one array per output.

        It has the requested outputs only. A sender drops the others without Python's lock: the last reference to an
        array of torch then ends the process.
        """
        if self.answers and request.request_id() != PROBE_ID:
            self.answers.add(arrays)
        requested = request.requested_output_names()
        named = [(spec["name"], array) for spec, array in zip(self.outputs, arrays) if spec["name"] in requested]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in named])

    def rows_of(self, arrays: Sequence[np.ndarray]) -> list[slice]:
        """Each request's rows in the joined batch."""
        if not self.max_batch_size:
            return [slice(None)]
        ends = itertools.accumulate(map(len, arrays))
        return [slice(end - len(array), end) for end, array in zip(ends, arrays)]

    def answer_the_rest(
        self, requests: Sequence[pb_utils.InferenceRequest], messages: Sequence[str]
    ) -> list[pb_utils.InferenceResponse]:
        """messages: a complaint per request, or "". Requests with a complaint get a 400, the others their answer."""
        good = [request for request, message in zip(requests, messages) if not message]
        answers = iter(self.run(good) if good else [])
        return [tensors.refusal(message) if message else next(answers) for message in messages]


def lower_priority() -> None:
    """Lower the priority of this thread and its future threads, unless it is lower already."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
