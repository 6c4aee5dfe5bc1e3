"""What a store promises about providers: their limits hold for all processes, and survive a restart.

The third part of `store.protocol.Store`, which inherits this. Each sentence of a docstring has a test in
`sennit.testing.contract`.

*Permits.* One permit is one call that may be made now. `limit.governor` says how many a provider has to give; the store
counts those that are out, in the transaction that gives or takes one, so no two processes give the same one.
A call that waits for a permit comes before tasks that wait to be claimed; calls wait by priority, then by who came first.
What frees a permit (a report, the end of an attempt, the death of a process) gives it on in the same transaction.

*Lines.* Calls stand in one line per `name` or `name/model`, as they were asked for. The first of a line that finds no room
keeps the others of its line waiting, also those that want less, and the tasks that have asked for the same; no other line.
Who has asked for a provider itself comes before those for whom it stands in.

*Tasks.* A task that has a provider is ready like others, and is claimed only together with a permit for its first call.
Its permit has the id of the task. It goes with the attempt: however that ends, the permit is free again, and so are all
others that were taken for the task, by whatever process; its requests that wait are rejected with PermitLost.
A task counts as a call whose tokens are not known. While its provider has no room, nor one that stands in, the `reason` of
a ready task is the WaitReason and the provider that it asked for: `limit anthropic`.
Tasks whose provider has no room never keep others of their queue from being claimed, and hold no slot.

*Fallbacks.* One is `name` or `name/model`; then the permit has that model, and else none. Those of a fallback are not
followed. One that is waited for itself, or whose own budget is spent, does not stand in; what it does is charged to it.

*Unknown providers.* One that was never declared is declared by its first use, with `Bounds.provider_parallel`: a permit
taken, a call reported, a claim. A submit alone declares nothing.

*Budgets.* A call is held against those of its task, thread, handler, provider and the fleet, and the first of these that is
spent is named; a call of no task, against the last two. A task is held against them when it is claimed, if it has a
provider: then it comes with `Claimed.spent` and without a permit, and needs no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from sennit.model.provider import (
    Budget,
    BudgetScope,
    BudgetView,
    CallReport,
    Permit,
    PermitRequest,
    ProviderSpec,
    ProviderView,
)
from sennit.sync.ack import Ack

Steer = Literal["isolate", "pause", "reset"]


class ProviderStore(Protocol):
    """Providers, permits, budgets."""

    # ------------------------------------------------------------ what is known of providers

    def declare_provider(self, spec: ProviderSpec) -> Ack[ProviderView]:
        """Store what is declared of a provider; it holds for all processes from now on, for those that wait as well.

        The last declaration stands. What was learnt (limit, pause, breaker, rates) is kept.
        Bounds lowered below what is in use take no permit away: none is given until it is back under.
        Declaring what is stored already changes nothing.
        """

    def providers(self, names: Sequence[str] = ()) -> Ack[list[ProviderView]]:
        """Return the providers, by name; with `names`, those.

        Raises:
            ProviderNotFound: one of `names` is not known.
        """

    def steer_provider(self, name: str, how: Steer, *, until_us: int | None = None) -> Ack[ProviderView]:
        """Do by hand what the governor does by itself.

        `isolate` gives no permit until `reset`; `pause` gives none until `until_us`; `reset` lifts pause and isolation,
        closes the breaker and lets the limit begin anew. Calls that are on their way go on.

        Raises:
            ProviderNotFound: not known.
        """

    def forget_provider(self, name: str) -> Ack[bool]:
        """Delete a provider and what was learnt of it; False when it is not known, in use, or something waits for it."""

    # ------------------------------------------------------------ permits

    def take_permit(self, request: PermitRequest) -> Ack[Permit]:
        """Resolve with a permit as soon as there is one for this call.

        With `task_id`, a budget of that task, its thread, its handler, of the provider or of the fleet that is spent
        refuses it. When the provider is paused or its breaker is open, the first of its fallbacks that is not, and has
        room, gives the permit. A process that dies gives back what it holds, and no longer waits. So does one that was
        taken for dead: it hears of that when it is back. Taking a permit renews the lease, as claiming does.

        Raises:
            ProviderBusy: there is none now, or others wait ahead of it, and the request does not wait.
            BudgetExceeded: see above; also while it waits: in the transaction that spends or lowers the budget.
            PermitLost: it waited, and its attempt is over, or its process was taken for dead.
            StoreUnavailable: the store object was closed.
        """

    def return_permit(self, permit_id: int, report: CallReport | None = None) -> Ack[bool]:
        """The call was made, as `report` says, or was not (None). False: the permit was not held, and nothing changes.

        Only the process that holds it returns it: the permit of a task has the same id in its next attempt, elsewhere.
        Also for a request that still waits: it is forgotten, and its ack is rejected with PermitLost.
        The report moves limit, rates, pause and breaker before anybody else is let through, and its usage is charged to
        the budgets. Numbers in it that cannot be are left out: no report keeps a permit out.
        When a store object is closed that no worker has joined, what it holds is free at once.
        """

    def report_call(self, provider: str, report: CallReport, *, task_id: int | None = None) -> Ack[None]:
        """Learn from a call that was made without a permit of its own, or from the end of a whole attempt."""

    def waits(self, task_id: int) -> Ack[dict[str, int]]:
        """Return for how long a task has waited, in µs by reason; a reason it did not wait for is left out.

        `dependencies`: from its submit until its last parent had ended. `limit`, `rate`, `pause`, `breaker`: it was
        wanted, or a call of it was asked for, and its provider had no room; the whole of such a wait counts for what
        held it back last. `human`, `event`, `budget`: it was suspended for that. `queue`: the rest until its first start.

        Raises:
            TaskNotFound: not in the store.
        """

    # ------------------------------------------------------------ budgets

    def set_budget(self, budget: Budget) -> Ack[BudgetView]:
        """Set or change a budget; what was spent stays. One without bounds is deleted.

        With the key "", that of tasks, threads or handlers is one for each: whoever is charged gets one with its bounds,
        which follow it, and goes with it, until it is set itself. That of a task goes with the task.
        Tasks that were suspended because it was spent, and are not any more, are ready again; calls that wait find a
        fallback again whose budget it is.
        """

    def budgets(self, scope: BudgetScope | None = None) -> Ack[list[BudgetView]]:
        """Return the budgets, and what was spent of each, by scope and key; also those that follow from one for each."""
