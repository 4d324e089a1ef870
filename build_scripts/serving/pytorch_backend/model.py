"""The `pytorch` backend of the embedded server: runs TorchScript for `platform: "pytorch_libtorch"` models.

NVIDIA's containers have a C++ backend for this; the embedded server has none, so Triton runs this file in its place (a
"Python-based backend"). It honours what the C++ one honours for models like ours and refuses, at load, what it does
not. Five things it adds: if the model exports `check_inputs`, a request with bad values gets a 400 of its own; after a
batch of several requests it waits a moment for the next batch to fill; it keeps freed memory for a while; and on a CPU
it gives way to the processes that take requests and refuse them, and splits long work into parts, between which
short texts overtake (`schedule` says which, `worker` does it; a GPU is done with any batch soon).
"""

import contextlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

# First in line: what lies beside this file is meant, whatever the environment has installed.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from heap import keep_large_blocks
from model_config import DTYPES, boolean, device_of, positional, read_parameters, set_threads
from openmp import releaser
from schedule import Entry, Schedule
from worker import Gauge, Waiting, Worker

# How long the next batch may fill, as a share of the time that this one took, and at most. Measured with 4 and 16
# clients on 2 cores: batches of 3.9 and 15.8 instead of 2.0 and 8.0, 15 to 20 % and 1 to 13 % more requests/s.
FILLING_SHARE, FILLING_LIMIT_S = 0.15, 0.004
# The nice value of a classifier on the CPU, beside everybody else's 0. At 20 times the requests that 2 cores can serve,
# a refusal took 3 ms at the median and 16 at the 99th percentile, instead of 8 and 28, and 6 to 12 % fewer requests
# were served meanwhile. Without overload nothing changed, at 1, 4 and 16 clients.
NICE = 5
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
        self.worker = None
        if self.device.type == "cpu" and self.max_batch_size > 1:
            gauge = Gauge(config["name"], args["model_instance_name"])
            self.release = releaser()
            self.worker = Worker(
                Schedule(self.max_batch_size), gauge, self.compute, self.respond, self.pause, self.release
            )
        self.trim_heap = keep_large_blocks().malloc_trim
        self.next_trim = time.monotonic() + TRIM_INTERVAL_S

    def finalize(self):
        if self.worker:
            self.worker.finish()

    def execute(self, requests):
        """One response per request, in order; or None: then they are sent, before this returns or later.

        What takes no longer than a part is computed here, unless something is computed already: a lone text does not
        pay for a change of thread, and short texts fill their batch while the one before is computed.
        """
        began = time.monotonic()
        worker = self.worker
        costs = [self.costs_of(request) for request in requests] if worker else []
        if worker and not worker.leaves_to_caller(costs):
            self.hand_over(worker, requests, costs)
            return None
        if len(requests) == 1 and began < self.next_trim:
            responses = self.answer(requests)
        else:
            senders = [request.get_response_sender() for request in requests]
            for sender, response in zip(senders, self.answer(requests)):
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            responses = None
        if worker:
            worker.schedule.measured(sum(map(sum, costs)), time.monotonic() - began)
        if responses is None:
            self.pause(time.monotonic() - began, len(requests))
        return responses

    def pause(self, seconds, answered):
        """Leave the processor alone for a moment after a batch of several requests, which took so many seconds.

        Their clients' next requests then share a batch with those that wait already; otherwise two halves of the
        clients would take turns. A client that is alone waits for nothing, nor does anybody when the batch was full.
        Memory is given back in such a moment too.
        """
        if time.monotonic() >= self.next_trim:
            self.trim_heap(0)
            self.next_trim = time.monotonic() + TRIM_INTERVAL_S
        elif 1 < answered < self.max_batch_size:
            time.sleep(min(FILLING_SHARE * seconds, FILLING_LIMIT_S))

    def costs_of(self, request):
        """Tokens of each row of a request: what its attention mask counts, and no fewer than the model does.

        A model without such a mask computes the whole width.
        """
        mask = input_array(request, self.inputs[min(1, len(self.inputs) - 1)]["name"])
        if len(self.inputs) == 1:
            return [max(1, mask[0].size)] * len(mask)
        if len(mask) == 1:
            return [max(1, int(np.count_nonzero(mask)))]
        return np.maximum(1, np.count_nonzero(mask.reshape(len(mask), -1), axis=1)).tolist()

    def hand_over(self, worker, requests, costs):
        """Let the worker answer the requests; those with bad values get their error now."""
        columns = [[np.array(input_array(request, spec["name"])) for request in requests] for spec in self.inputs]
        waiting = [Waiting(request, arrays) for request, arrays in zip(requests, zip(*columns))]
        messages = self.complaints([join(column) for column in columns], self.rows_of(columns[0]))
        for one, message in zip(waiting, messages):
            if message:
                one.send(refusal(message))
        kind = [array.shape[1:] for array in waiting[0].columns]
        good = zip(waiting, costs, messages)
        self.release()
        worker.hand_over([Entry(one, cost, kind) for one, cost, message in good if not message])

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
        columns = [join(column) for column in columns]
        messages = self.complaints(columns, rows)
        if any(messages):
            return self.answer_the_rest(requests, messages)
        arrays = self.compute(columns)
        return [self.respond([array[span] for array in arrays]) for span in rows]

    def compute(self, columns):
        """columns: each input of the whole batch. Returns each output, a row for each of the batch."""
        with self.modes():
            outputs = self.model(*(torch.from_numpy(column).to(self.device) for column in columns))
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        arrays = [to_be_sent(spec, output) for spec, output in zip(self.outputs, outputs, strict=True)]
        rows = len(columns[0])
        if self.max_batch_size and any(len(array) != rows for array in arrays):
            raise ValueError(f"a batch of {rows} rows got outputs of {[len(array) for array in arrays]}")
        return arrays

    def complaints(self, columns, rows):
        """What the model finds wrong with the inputs of each request, empty if nothing. rows: a slice a request."""
        found = []
        if self.check_inputs:
            with self.modes():
                found = self.check_inputs(*(torch.from_numpy(column).to(self.device) for column in columns))
        return [next(filter(None, found[span]), "") for span in rows]

    @contextlib.contextmanager
    def modes(self):
        """How the model is to be run. Each thread has to say so for itself."""
        with (
            torch.inference_mode(self.inference_mode),
            torch.no_grad(),  # after it: inference_mode(False) turns gradients on
            torch.jit.optimized_execution(self.optimized),
        ):
            yield

    def respond(self, arrays):
        """arrays: the rows of one request, an array an output."""
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(spec["name"], array) for spec, array in zip(self.outputs, arrays)]
        )

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
        return [refusal(message) if message else next(answers) for message in messages]


def yield_to_others():
    """Lower the priority of this thread and of those that it starts. Whoever started us may have lowered it further."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))


def input_array(request, name):
    """A view of the request's tensor, in the memory that it came in. Triton hands Python models main memory only."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def join(arrays):
    """One batch from the requests' arrays; a single request is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def refusal(message):
    """What becomes HTTP 400 and gRPC INVALID_ARGUMENT."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


def to_be_sent(spec, output):
    """An output as a numpy array. Raises TypeError if it is not of the type that the configuration promises."""
    if output.dtype != DTYPES[spec["data_type"]]:
        raise TypeError(f"{spec['name']} is {output.dtype}, the configuration says {spec['data_type']}")
    return output.cpu().contiguous().numpy()
