/* From one view to the next: a ring of three members in which each sends to the next and waits for the one before;
 * member 2 dies at any time; the survivors revoke, agree, edit, and take in member 3, who gets a welcome. One more
 * process, the sleeper, was a member once, and wakes up at some time to send what it had in hand.
 *
 *   spin -search edit.pml               no error, and nobody is left waiting
 *   spin -search -DWITHOUT_x edit.pml   a counter-example, x one of
 *     REVOKE    who notices the death tells nobody
 *     EPOCHS    a message is taken whatever its epoch is
 *     KEEPING   a message of an epoch that is yet to come is dropped like one of the past
 *     WELCOME   the one who made the decision alone tells the newcomer, and may die before
 *
 * How the survivors agree is in agree.pml; here it happens at once, when all of them take part.
 */
#define NONE 9

mtype = { data };
chan inbox[4] = [4] of { mtype, byte, byte };  /* epoch, sender */
bool is_dead, knows[2], is_revoked[2], takes_part[2], is_decided, is_welcome, is_done[4];

inline say(to, epoch, me) { inbox[to] ! data, epoch, me }

/* Takes messages until the one that this epoch's operation waits for; those of epochs to come are kept. */
inline listen(me, epoch) {
  inbox[me] ? data, of_epoch, sender ->
  if
#ifdef WITHOUT_EPOCHS
  :: true -> got = sender
#else
  :: of_epoch == epoch -> got = sender
#ifdef WITHOUT_KEEPING
  :: of_epoch != epoch
#else
  :: of_epoch > epoch -> kept = sender
  :: of_epoch < epoch
#endif
#endif
  fi
}

proctype Survivor(byte me) {
  byte got = NONE, kept = NONE, of_epoch, sender;

  /* Epoch 1: 0 -> 1 -> 2 -> 0. Either the operation ends, or the group is revoked. */
  say((me + 1) % 3, 1, me);
  do
  :: got == NONE && !is_revoked[me] ->
     if
     :: atomic { nempty(inbox[me]) -> listen(me, 1) }
     :: is_revoked[me]
     :: atomic { knows[me] && !is_revoked[me] ->
          is_revoked[me] = true;
#ifndef WITHOUT_REVOKE
          is_revoked[1 - me] = true
#else
          skip
#endif
        }
     fi
  :: got != NONE -> assert(got == (me + 2) % 3); got = NONE  /* and the next operation of the epoch */
  :: is_revoked[me] -> break
  od;

  /* Agree, and edit. */
  takes_part[me] = true;
  atomic { takes_part[0] && takes_part[1] -> is_decided = true };
#ifdef WITHOUT_WELCOME
  if
  :: me == 0 -> if :: is_welcome = true :: skip fi  /* it may be gone before it has told */
  :: else
  fi;
#else
  is_welcome = true;
#endif

  /* What comes before this one has taken up the view goes through the same hands. */
  do
  :: atomic { nempty(inbox[me]) -> listen(me, 1) }
  :: break
  od;

  /* Epoch 2: 0 -> 1 -> 3 -> 0. */
  got = kept;
  say((me == 0 -> 1 : 3), 2, me);
  do
  :: got == NONE -> atomic { nempty(inbox[me]) -> listen(me, 2) }
  :: else -> break
  od;
  assert(got == (me == 0 -> 3 : 0));
  is_done[me] = true
}

/* Sends its part or not, and dies; the one next to it sees that. */
proctype Victim() {
  byte seen;
  if
  :: say(0, 1, 2)
  :: skip
  fi;
  is_dead = true;
  knows[1] = true
}

proctype Newcomer() {
  byte got = NONE, kept = NONE, of_epoch, sender;
  is_welcome -> say(0, 2, 3);
  do
  :: got == NONE -> atomic { nempty(inbox[3]) -> listen(3, 2) }
  :: else -> break
  od;
  assert(got == 1);
  is_done[3] = true
}

/* Of an epoch long gone. */
proctype Sleeper() {
  if
  :: say(0, 0, 4)
  :: say(1, 0, 4)
  :: skip
  fi
}

init {
  atomic {
    run Survivor(0);
    run Survivor(1);
    run Victim();
    run Newcomer();
    run Sleeper()
  }
}
