//! What can happen.

use std::mem;

use order_service::order::{Released, State};
use shared::orders::OrderStatus;
use shared::products::{ReservationStatus, ReserveAction};

use crate::Mistake;
use crate::world::{Attempt, Release, Task, World};

/// Something that happens.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// Whether it needs no rival, no client, and no task that places an order.
    pub(crate) is_calm: bool,
    /// To which attempt, if to one.
    at: Option<usize>,
}

impl Step {
    /// A line that says what happened, and what came of it.
    pub(crate) fn tell<const N: usize>(&self, after: &World<N>) -> String {
        match self.at {
            Some(at) => format!("\n  {}: {:<34} {}", ["A", "B", "C"][at], self.name, after.attempts[at]),
            None => format!("\n     {:<34} {} free", self.name, after.free),
        }
    }
}

/// Lists steps with their names.
macro_rules! steps {
    ($($step:ident)*) => { &[$((stringify!($step), Self::$step)),*] };
}

/// A step that happens to all, and its name.
type ToAll<W> = (&'static str, fn(W) -> Option<W>);
/// A step that happens to one attempt, and its name.
type ToOne<W> = (&'static str, fn(W, usize) -> Option<W>);

impl<const N: usize> World<N> {
    const OF_RIVALS: &[ToAll<Self>] = steps! { rival_buys rival_gives_back };

    const OF_TASKS_AND_CLIENTS: &[ToOne<Self>] = steps! {
        attempt_begins attempt_finds_the_order attempt_finds_another_in_progress
        take_is_sent_again take_is_granted take_is_granted_again
        take_is_refused_for_lack_of_stock take_is_refused_as_released
        order_is_settled order_is_settled_unheard order_was_given_up_meanwhile
        attempt_is_refused attempt_fails attempt_finds_itself_settled order_service_dies
        order_is_confirmed order_is_shipped order_is_delivered order_is_cancelled
    };

    /// These alone must bring everything to its end.
    const OF_MESSAGES_AND_RECONCILER: &[ToOne<Self>] = steps! {
        take_arrives take_is_lost release_arrives release_is_lost
        reconciler_gives_up reconciler_asks_for_release reconciler_stops_waiting
        release_is_acknowledged row_is_finished
    };

    /// All that can happen next, and what comes of it.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (Step, Self)> {
        let to_all = Self::OF_RIVALS.iter().filter_map(|&(name, happens)| {
            let step = Step { name, is_calm: false, at: None };
            Some((step, happens(*self)?))
        });
        to_all.chain((0..N).flat_map(|at| self.steps_of(at)))
    }

    fn steps_of(&self, at: usize) -> impl Iterator<Item = (Step, Self)> {
        let busy = Self::OF_TASKS_AND_CLIENTS.iter().map(|step| (step, false));
        let calm = Self::OF_MESSAGES_AND_RECONCILER.iter().map(|step| (step, true));
        busy.chain(calm).filter_map(move |(&(name, happens), is_calm)| {
            let step = Step { name, is_calm, at: Some(at) };
            Some((step, happens(*self, at)?))
        })
    }

    pub(crate) fn step_names() -> impl Iterator<Item = &'static str> {
        let to_one = Self::OF_TASKS_AND_CLIENTS.iter().chain(Self::OF_MESSAGES_AND_RECONCILER);
        Self::OF_RIVALS.iter().map(|step| step.0).chain(to_one.map(|step| step.0))
    }
}

/// The steps. Each is at most one statement in one store, with the message that brings it or the one that it sends off;
/// never two statements, since anything may happen between them. It is `None` where it cannot happen.
impl<const N: usize> World<N> {
    fn rival_buys(self) -> Option<Self> {
        Some(Self { free: self.free.checked_sub(1)?, rivals: self.rivals + 1, ..self })
    }

    fn rival_gives_back(self) -> Option<Self> {
        Some(Self { free: self.free + 1, rivals: self.rivals.checked_sub(1)?, ..self })
    }

    /// The intent is written down, which the uniqueness of the key allows only now, and the stock is asked for.
    fn attempt_begins(mut self, at: usize) -> Option<Self> {
        let key_is_free = self.key_holder().is_none();
        let attempt = self.doing(at, &[Task::NotBegun]).filter(|_| key_is_free)?;
        *attempt = Attempt { row: Some(State::Placing), task: Task::Asking, take_sent: true, ..*attempt };
        Some(self)
    }

    /// The key has an order, which is the answer again.
    fn attempt_finds_the_order(mut self, at: usize) -> Option<Self> {
        let holder = self.key_holder()?;
        self.doing(at, &[Task::NotBegun])?.task = Task::Over;
        let order = &mut self.attempts[holder];
        order.row?.shown()?;
        order.told_201 = true;
        Some(self)
    }

    /// The key has an intent: come back later.
    fn attempt_finds_another_in_progress(mut self, at: usize) -> Option<Self> {
        let holder = self.key_holder()?;
        self.doing(at, &[Task::NotBegun])?.task = Task::Over;
        self.attempts[holder].row?.shown().is_none().then_some(self)
    }

    fn take_is_sent_again(mut self, at: usize) -> Option<Self> {
        self.doing(at, &[Task::Asking])?.take_sent = true;
        Some(self)
    }

    fn take_is_granted(self, at: usize) -> Option<Self> {
        self.take_is_answered(at, Answer::Granted, Task::Taken)
    }

    fn take_is_granted_again(self, at: usize) -> Option<Self> {
        self.take_is_answered(at, Answer::GrantedAgain, Task::Taken)
    }

    fn take_is_refused_for_lack_of_stock(self, at: usize) -> Option<Self> {
        self.take_is_answered(at, Answer::TooLittleStock, Task::Refused)
    }

    fn take_is_refused_as_released(self, at: usize) -> Option<Self> {
        self.take_is_answered(at, Answer::ReleasedBefore, Task::Refused)
    }

    fn order_is_settled(mut self, at: usize) -> Option<Self> {
        let attempt = self.settle(at)?;
        attempt.told_201 = true;
        attempt.task = Task::Over;
        Some(self)
    }

    /// It is settled, but the store's answer is lost: so the task does not know.
    fn order_is_settled_unheard(mut self, at: usize) -> Option<Self> {
        self.settle(at)?.task = Task::Failing;
        Some(self)
    }

    /// Only what is still `placing` can be settled.
    fn order_was_given_up_meanwhile(mut self, at: usize) -> Option<Self> {
        let attempt = self.doing(at, &[Task::Taken])?;
        attempt.task = Task::Failing;
        attempt.row.and_then(State::settle).is_none().then_some(self)
    }

    /// The answer is 4xx: the stock is not to be had, or there is no such user, or the price is another.
    fn attempt_is_refused(mut self, at: usize) -> Option<Self> {
        self.doing(at, &[Task::Asking, Task::Taken, Task::Refused])?.told_4xx = true;
        self.give_up(at);
        Some(self)
    }

    /// The answer is 503: something took too long, or is away.
    fn attempt_fails(mut self, at: usize) -> Option<Self> {
        self.doing(at, &[Task::Asking, Task::Taken, Task::Refused, Task::Failing])?;
        self.give_up(at);
        Some(self)
    }

    /// It could not be given up because it is an order: only the word of that was lost, and the answer is 201 after all.
    fn attempt_finds_itself_settled(mut self, at: usize) -> Option<Self> {
        let attempt = self.doing(at, &[Task::Failing])?;
        attempt.row?.shown()?;
        attempt.told_201 = true;
        attempt.task = Task::Over;
        Some(self)
    }

    /// The replica that the task runs in dies; that several die at once is this step several times. A reconciler that
    /// dies is the same as one that stops waiting.
    fn order_service_dies(mut self, at: usize) -> Option<Self> {
        self.doing(at, &[Task::Asking, Task::Taken, Task::Refused, Task::Failing])?.task = Task::Over;
        Some(self)
    }

    fn order_is_confirmed(self, at: usize) -> Option<Self> {
        self.client_asks(at, OrderStatus::Confirmed)
    }

    fn order_is_shipped(self, at: usize) -> Option<Self> {
        self.client_asks(at, OrderStatus::Shipped)
    }

    fn order_is_delivered(self, at: usize) -> Option<Self> {
        self.client_asks(at, OrderStatus::Delivered)
    }

    fn order_is_cancelled(self, at: usize) -> Option<Self> {
        self.client_asks(at, OrderStatus::Cancelled)
    }

    /// It arrives late, or again, or the answer is lost: nobody hears it.
    fn take_arrives(mut self, at: usize) -> Option<Self> {
        self.take(at)?;
        Some(self)
    }

    fn take_is_lost(mut self, at: usize) -> Option<Self> {
        mem::take(&mut self.attempts[at].take_sent).then_some(self)
    }

    /// It arrives, and nobody hears the answer.
    fn release_arrives(mut self, at: usize) -> Option<Self> {
        self.release(at)?;
        Some(self)
    }

    fn release_is_lost(mut self, at: usize) -> Option<Self> {
        mem::take(&mut self.attempts[at].release_sent).then_some(self)
    }

    /// It may do so at any moment: that it gives the task some time is a courtesy.
    fn reconciler_gives_up(mut self, at: usize) -> Option<Self> {
        let row = &mut self.attempts[at].row;
        *row = Some(row.and_then(State::abort)?);
        Some(self)
    }

    fn reconciler_asks_for_release(mut self, at: usize) -> Option<Self> {
        let wanted = self.attempts[at].row?.wants_release();
        let attempt = self.releasing(at, &[Release::NotSent]).filter(|_| wanted)?;
        attempt.release_sent = true;
        attempt.release = Release::BatchItem;
        if self.makes(Mistake::FinishBeforeReleased) {
            self.attempts[at].finish();
        }
        Some(self)
    }

    fn reconciler_stops_waiting(mut self, at: usize) -> Option<Self> {
        self.releasing(at, &[Release::BatchItem, Release::Acknowledged])?.release = Release::NotSent;
        Some(self)
    }

    fn release_is_acknowledged(mut self, at: usize) -> Option<Self> {
        self.release(at)?;
        self.releasing(at, &[Release::BatchItem])?.release = Release::Acknowledged;
        Some(self)
    }

    /// The row waits for the acknowledgement, because only it knows of the stock. It may be finished twice: by each of
    /// two replicas, or by the reconciler and the task that gave it up.
    fn row_is_finished(mut self, at: usize) -> Option<Self> {
        self.releasing(at, &[Release::Acknowledged])?.finish();
        Some(self)
    }
}

/// What product-service says to a take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Granted,
    GrantedAgain,
    TooLittleStock,
    ReleasedBefore,
}

/// What the steps are made of.
impl<const N: usize> World<N> {
    /// An attempt, if its task is at one of these.
    fn doing(&mut self, at: usize, tasks: &[Task]) -> Option<&mut Attempt> {
        Some(&mut self.attempts[at]).filter(|attempt| tasks.contains(&attempt.task))
    }

    /// An attempt, if its release is at one of these.
    fn releasing(&mut self, at: usize, releases: &[Release]) -> Option<&mut Attempt> {
        Some(&mut self.attempts[at]).filter(|attempt| releases.contains(&attempt.release))
    }

    /// The store makes an order of an intent, if the task is so far and the intent still there.
    fn settle(&mut self, at: usize) -> Option<&mut Attempt> {
        let ready = if self.makes(Mistake::SettleBeforeTaken) { Task::Asking } else { Task::Taken };
        let regardless = self.makes(Mistake::SettleRegardless);
        let attempt = self.doing(at, &[ready])?;
        let row = attempt.row?;
        attempt.row = Some(if regardless { State::Pending } else { row.settle()? });
        Some(attempt)
    }

    /// The store gives up the intent, if it is still one, and the task ends.
    fn give_up(&mut self, at: usize) {
        let mistake = self.mistake;
        let attempt = &mut self.attempts[at];
        let aborting = attempt.row.and_then(State::abort);
        attempt.row = aborting.or(attempt.row);
        if mistake == Some(Mistake::ReleaseRegardless) {
            attempt.release_sent = true;
        }
        if mistake == Some(Mistake::NoReleaseAfterRefusal) && attempt.task == Task::Refused {
            attempt.finish();
        }
        attempt.task = Task::Over;
    }

    /// A client asks for a step from where it sees the order.
    fn client_asks(mut self, at: usize, status: OrderStatus) -> Option<Self> {
        let attempt = &mut self.attempts[at];
        let seen = attempt.row?.shown()?;
        attempt.row = Some(State::of(seen).step(status)?);
        Some(self)
    }

    /// The take arrives, and the task hears the answer. One that hears it late is one that does nothing for a while.
    fn take_is_answered(mut self, at: usize, answer: Answer, then: Task) -> Option<Self> {
        let answered = self.take(at)?;
        self.doing(at, &[Task::Asking])?.task = then;
        (answered == answer).then_some(self)
    }

    /// What product-service does with a take, if one is on its way.
    fn take(&mut self, at: usize) -> Option<Answer> {
        let attempt = &mut self.attempts[at];
        if !attempt.take_sent {
            return None;
        }
        Some(match ReservationStatus::on_reserve(attempt.reservation) {
            ReserveAction::Reserve if self.free == 0 => Answer::TooLittleStock,
            ReserveAction::Reserve => {
                self.free -= 1;
                attempt.reservation = Some(ReservationStatus::Taken);
                Answer::Granted
            }
            ReserveAction::ReturnExisting => Answer::GrantedAgain,
            ReserveAction::Reject => Answer::ReleasedBefore,
        })
    }

    /// What product-service does with a release, if one is on its way.
    fn release(&mut self, at: usize) -> Option<()> {
        let leaves_mark = !self.makes(Mistake::NoTombstone);
        let attempt = &mut self.attempts[at];
        if !attempt.release_sent {
            return None;
        }
        if ReservationStatus::release_returns_stock(attempt.reservation) {
            self.free += 1;
        }
        if attempt.reservation.is_some() || leaves_mark {
            attempt.reservation = Some(ReservationStatus::after_release(attempt.reservation));
        }
        Some(())
    }
}

impl Attempt {
    /// The store finishes a row whose stock was released.
    fn finish(&mut self) {
        match self.row.and_then(State::released) {
            Some(Released::Gone) => self.row = None,
            Some(Released::Kept(state)) => self.row = Some(state),
            None => {}
        }
    }
}
