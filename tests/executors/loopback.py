"""An executor whose worker lives in this process: the two sides talk through threads and pickle."""

from __future__ import annotations

import pickle
import queue
import threading
import time

from lg_textgrad.executors.distant import Guests
from lg_textgrad.executors.home import Line, total
from lg_textgrad.executors.luggage import pack, unpack


class Loopback:
    """A worker behind a line that carries bytes, as a context manager and an executor."""

    def __init__(self, graph, spec):
        self.graph = graph
        ready = unpack(pickle.loads(pickle.dumps(pack(graph, spec))))
        self.out, self.back = queue.SimpleQueue(), queue.SimpleQueue()
        self.guests = Guests(ready.source, ready.bindings, ready.tools, self._put(self.back))
        self.line = Line(self._put(self.out))
        self.said = []
        """What the worker told."""
        self.paid = {}

    @staticmethod
    def _put(to):
        return lambda message: to.put(pickle.dumps(message))

    def _carry(self, way, hear):
        while (data := way.get()) is not None:
            message = pickle.loads(data)
            if way is self.back:
                self.said.append(message)
            hear(message)

    def __enter__(self):
        self.threads = [
            threading.Thread(target=self._carry, args=(self.out, self.guests.hear)),
            threading.Thread(target=self._carry, args=(self.back, self.line.hear)),
        ]
        for thread in self.threads:
            thread.start()
        self.graph.executor = self
        return self

    def __exit__(self, *_):
        self.graph.executor = None
        # A worker that is killed takes its runs along; here they would hold their scopes for ever.
        deadline = time.monotonic() + 10
        for task in list(self.guests._tasks.values()):
            self.guests._loop.call_soon_threadsafe(task.cancel)
        while self.guests._tasks and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not self.guests._tasks
        self.out.put(None)
        self.threads[0].join()
        self.back.put(None)
        self.threads[1].join()

    async def arun(self, example, candidate, bindings, scope):
        paid = {}
        try:
            return await self.line.arun(example, candidate, scope, paid)
        finally:
            scope.usage = total(paid)
