"""The world that searches read while another is learnt."""

from scalezero.agent.ready import ready
from scalezero.agent.world import World


class Actor:
    """Holds a world, whatever is learnt after, and makes it `ready` when decisions first ask.

    Updates that follow each other, with no decision between, make nothing ready. For one thread.
    """

    def __init__(self, world: World) -> None:
        """Holds `world` until it is asked for, and from then on what `ready` made of it alone."""
        self._world, self._is_ready = world, False

    @property
    def world(self) -> World:
        """As searches read it."""
        if not self._is_ready:
            self._world, self._is_ready = ready(self._world), True
        return self._world
