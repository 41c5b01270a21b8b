"""Finding the best configuration in few launches. Pure: it starts nothing, reads no clock and no file.

The protocol
------------
`Search(arms, goal, rules, seed, cards)` of `search.py` holds what was begun and answered, and says what to do next:

    while (launch := search.next(card)) is not None:    # None: nothing is worth a launch by what is known now
        search.begin(launch)
        step = launch
        while step is not None:
            step = search.answer(launch.key, do(step))   # Launch -> Launched | LaunchFailed, Probe -> Probed | Died
    outcome = search.outcome()

On several cards each one asks for its next launch when it is free; a card that gets None while others are at work asks
again when one of their launches is over. All values are in `protocol.py`:

- `Arm`: one configuration, with the figures that settings are near each other by and what was predicted of it.
- `Launch(config_id, number, why, load, card)`: stop the server that runs on this card, start this one.
- `Probe(config_id, number, load, repeat, seed, least, most)`: load the server with so many closed-loop streams, or
  hundredths of a request a second. While it runs, ask `probe.enough(counts)` now and then (once a second) with the
  requests so far within each limit, and end the point as soon as it says so. The seed is the same for every
  configuration's probes of the same repeat: they answer the same requests.

`begin` and `answer` are facts, whoever decided on them: a run is resumed by telling them again from its journal, also
with more launches, more time or more cards than it had. What was begun and not answered is in `running`.

The rooms
---------
`protocol.py` values; `sequential.py` the test that ends a probe; `knee.py` the largest load that a server holds;
`saturation.py` whether an open loop's queue grows; `belief.py` what is believed of every arm; `search.py` the race.
"""
