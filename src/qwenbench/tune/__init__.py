"""Finding the best configuration in few launches. Pure: it starts nothing, reads no clock and no file.

The protocol
------------
`search(arms, goal, rules, seed)` of `search.py` is a generator. It yields what is to be done next and is sent what came
of it; when it ends, its return value (`StopIteration.value`) is the `Outcome`:

    steps = search(arms, goal, rules, seed)
    step = next(steps)
    while True:
        try:
            step = steps.send(do(step))      # Launch -> Launched | LaunchFailed, Probe -> Probed | Died
        except StopIteration as end:
            return end.value

All values are in `protocol.py`:

- `Arm`: one configuration, with the figures that settings are near each other by and what was predicted of it.
- `Launch(config_id, number)`: stop the server that runs, start this one. Answer `Launched(seconds)`, or
  `LaunchFailed(reason, seconds)` when it did not become ready.
- `Probe(config_id, number, users, repeat, seed, least, most)`: load the server that runs with so many closed-loop
  streams (`goal.users`, or what a knee search asks for). While it runs, ask `probe.enough(counts)` now and then (once a
  second) with the requests so far within each limit, and end the point as soon as it says so. Answer `Probed(counts,
  value, seconds)`, or `Died(reason, seconds)` when the engine ended under the load. The seed is the same for every
  configuration's probes of the same repeat: they answer the same requests.

The search is a function of its arguments and of the answers alone. So a run is resumed by sending the answers that its
journal holds, in order, until the journal ends: the same steps come again, nothing is measured twice. Steps of a run
that was killed in between are asked for again.

Within a real run a `Probe` is a load point and a `Launch` a launch of the plan; both are journalled like any other.
`Outcome.path` says what was tried in which order and why each was dropped.

The rooms
---------
`protocol.py` values; `sequential.py` the test that ends a probe; `knee.py` the largest number of users that a server
holds; `belief.py` what is believed of arms that were not launched; `search.py` the race.
"""
