/* Agreement on one epoch of five members: two leaders and three others, deaths, a cable that is cut.
 *
 *   spin -search -O2 agree.pml               no error
 *   spin -search -O2 -DWITHOUT_x agree.pml   a counter-example, x one of
 *     WRITTEN    votes are not written where they can be read after a death
 *     PROOF      the proof of a death does not carry the vote
 *     MAJORITY   half of the voters are enough
 *     ADOPT      a leader proposes what it likes
 *     PROMISES   ballots count although a dead member has promised a higher one
 *     FENCE      who is left out is not killed before
 *
 * Taking a vote and hearing of it is one step here: what is lost by that, a vote whose news is under way, looks
 * to the leader like a vote that has not been given yet. Members that are asleep are members that nobody picks.
 */
#define N 5
#define SILENT 4  /* if it is: no leader hears from it, and it will be left out */
#define BIT(p) (1 << (p))

#ifdef WITHOUT_MAJORITY
#define ENOUGH(count, voters) (2 * (count) >= (voters))
#else
#define ENOUGH(count, voters) (2 * (count) > (voters))
#endif
#if defined(WITHOUT_PROMISES) || defined(WITHOUT_PROOF)
#define BINDS(promised, ballot) false
#else
#define BINDS(promised, ballot) ((promised) > (ballot))
#endif

/* What each member has in its memory, and what others can read of it when it is dead. */
byte promised[N], accepted[N], value[N];
byte left_promised[N], left_accepted[N], left_value[N];
bool is_dead[N];
bool is_cut;        /* member 0 on one side, the others on the other */
bool is_silent;
byte decided[N];    /* 0: nothing */

#define REACHES(a, b) (!is_cut || ((a) == 0) == ((b) == 0))

inline write_vote(p) {
#ifndef WITHOUT_WRITTEN
  left_promised[p] = promised[p];
  left_accepted[p] = accepted[p];
  left_value[p] = value[p];
#else
  skip;
#endif
}

#define IN(set, p) (((set) >> (p)) & 1)
#define COUNT(set) (IN(set, 0) + IN(set, 1) + IN(set, 2) + IN(set, 3) + IN(set, 4))
#define BINDS_OF(p) (IN(dead, p) && BINDS(left_promised[p], ballot))
#define DEAD_BIND (BINDS_OF(1) || BINDS_OF(2))

inline consider(ballot_of, value_of) {
#ifndef WITHOUT_ADOPT
  if
  :: ballot_of > best -> best = ballot_of; proposal = value_of
  :: else
  fi
#else
  skip;
#endif
}

#define ANSWERS(p) (!is_dead[p] && !(is_silent && p == SILENT) && REACHES(me, p) && !(answered & BIT(p)))

#define PROMISE(p) \
  :: atomic { \
       ANSWERS(p) && promised[p] < ballot -> \
       promised[p] = ballot; \
       write_vote(p); \
       answered = answered | BIT(p); \
       consider(accepted[p], value[p]) \
     }

#define ACCEPT(p) \
  :: atomic { \
       ANSWERS(p) && promised[p] <= ballot -> \
       promised[p] = ballot; \
       accepted[p] = ballot; \
       value[p] = proposal; \
       write_vote(p); \
       answered = answered | BIT(p) \
     }

#define QUORUM (ENOUGH(COUNT(answered & ~dead), N - COUNT(dead)) && !DEAD_BIND)

#define TAKE_OVER(p) \
  if \
  :: IN(dead, p) -> consider(left_accepted[p], left_value[p]) \
  :: else \
  fi;

#define LEARN(p) \
  :: atomic { is_dead[p] && !(dead & BIT(p)) && REACHES(me, p) -> dead = dead | BIT(p) }

/* One ballot: a second one of the same leader is like the first one of another. */
proctype Leader(byte me; byte ballot; byte own_value) {
  byte best, proposal, dead, answered;

  atomic {
    proposal = own_value;
#ifndef WITHOUT_FENCE
    if
    :: is_silent && REACHES(me, SILENT) -> is_dead[SILENT] = true; dead = BIT(SILENT)
    :: else
    fi
#endif
  }
end_preparing:
  do
  PROMISE(0) PROMISE(1) PROMISE(2) PROMISE(3) PROMISE(4)
  LEARN(1) LEARN(2)
  :: atomic {
       QUORUM ->
#ifndef WITHOUT_PROOF
       TAKE_OVER(1) TAKE_OVER(2)
#endif
       answered = 0;
       best = 0;
       break
     }
  od;
end_proposing:
  do
  ACCEPT(0) ACCEPT(1) ACCEPT(2) ACCEPT(3) ACCEPT(4)
  LEARN(1) LEARN(2)
  :: atomic {
       QUORUM ->
       decided[me] = proposal;
       assert(!is_silent || is_dead[SILENT] || !REACHES(me, SILENT));
       assert(decided[0] == 0 || decided[3] == 0 || decided[0] == decided[3]);
       answered = 0;
       proposal = 0;
       dead = 0;
       break
     }
  od
}

/* Members 1 and 2 may die, the cable may be cut, each at any time or never. */
proctype World() {
end:
  do
  :: atomic { !is_cut -> is_cut = true }
  :: atomic { !is_dead[1] -> is_dead[1] = true }
  :: atomic { !is_dead[2] -> is_dead[2] = true }
  od
}

init {
  atomic {
    if
    :: is_silent = true
    :: is_silent = false
    fi;
    run Leader(0, 1, 1);
    run Leader(3, 2, 2);
    run World()
  }
}
