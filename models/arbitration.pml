/*
 * Who runs: the arbitration between the two hosts of one protection and the witness, for spin (docs/model.md says what is in it and what isn't).
 * `npm run model` checks every run of it, and that each of the MUTANT_ defines below, which breaks one rule, is found out.
 *
 * Steps. Each is one `atomic` below with this name in its printf, and one event of the code's machines: test/sim/model.test.ts has runs of the model
 * done by them, and compares what STEP prints. P: the agent beside the running VM. S: the agent beside the standby's.
 *
 *   step                   who  event of the code                                        what follows
 *   witness_executes       W    the transaction arrives, whether or not it's answered    the key changes if its revision is the compared one
 *   witness_executes_late  W    the same, after its sender's end                         the same
 *   session_opens          P,S  HELLO and READY                                          S forgets what it held; the highest generation is fsynced
 *   checkpoint_sent        P    the pages of an epoch have left                          the gate holds from the first one on
 *   checkpoint_received    S    the epoch is staged                                      RECEIVED
 *   output_released        P    RECEIVED                                                 the epoch's output leaves; after the first one: protect
 *   output_passes          P    a frame, gate open                                       it leaves
 *   session_lost           P,S  time-out, closed connection                              P: claims anew, its gate open if no `protected` was asked for
 *   primary_claims         P    read answer                                              transact alone(g+1, P), or FENCED
 *   key_removed            W    etcd has been emptied, or is another one                 nobody decides anything; only with WITH_REMOVAL
 *   take_over_fails        S    flush, load or sync of the disks fails                   nothing is held any more, and the key isn't touched
 *   secondary_claims       S    disks settled, read answer that decides something        no RECEIVED any more; transact alone(g+1, S), or nothing is held any more
 *   protect_won            P    transaction answer, or read answer with our claim        PROTECTED
 *   primary_won            P    the same                                                 generation fsynced, gate opened: EXPOSED
 *   secondary_won          S    the same                                                 generation fsynced, VM runs, gate open; this agent has done its work
 *   lost                   P,S  the key has moved on and isn't ours                      P: FENCED; S: what it holds is stale
 *   hands_over             P    the last RECEIVED, and the VM has been brought to a stand  HANDOVER; only with WITH_HANDOVER
 *   took_over              P    TOOK_OVER                                                its VM stands for good; here it is gone
 *   agent_dies, host_dies       kill -9; power                                           a gate under the VM's NICs fails closed
 *   agent_starts           P    read answer, also beside a VM that a standby let run     the gate stays as it is; claims, or FENCED
 *   joins_as_standby       S    a standby's agent, or a fenced host's VM, starts anew    it holds nothing
 *
 * A request or an answer that is lost is no step: who has asked goes on asking the same (same claim, same compared revision) until it knows.
 * Bounds: each of the six budgets is a number of times that something may happen; everything else is unlimited. All runs end, so that a
 * property of their last states says what comes about when failures have stopped and the witness answers.
 *
 * AS_CODED leaves out what the code doesn't make use of, and what is safe all the same: a restarted agent of P opens a session without a claim, in the generation that the
 * key has.
 */
#if defined(WITH_REMOVAL) || defined(MUTANT_GONE_IS_LOST) || defined(MUTANT_GONE_IS_NEW)
#define REMOVALS 1
#define SESSIONS 2
#define AGENT_DEATHS 1
#define HOST_DEATHS 1
#else
#define REMOVALS 0
#endif
#if defined(WITH_HANDOVER) || defined(MUTANT_HANDOVER_GOES_ON) || defined(MUTANT_TOOK_OVER_FIRST)
#define HANDOVERS 1
#define SESSIONS 2
#define LOSSES 1
#define AGENT_DEATHS 1
#define HOST_DEATHS 1
#else
#define HANDOVERS 0
#endif
#ifndef EPOCHS
#define EPOCHS 3   /* the VM's epochs, from 1 */
#endif
#ifndef SESSIONS
#define SESSIONS 3
#endif
#ifndef LOSSES
#define LOSSES 3   /* sessions given up by a side while the other thinks them well */
#endif
#ifndef AGENT_DEATHS
#define AGENT_DEATHS 2
#endif
#ifndef HOST_DEATHS
#define HOST_DEATHS 2
#endif
#ifndef FAILURES
#define FAILURES 1 /* take-overs whose checkpoint turns out to be of no use */
#endif
#define GENERATIONS_MAX 16
#define NOBODY 2

#define ALONE 0      /* the key's modes */
#define PROTECTED 1

#define NONE 0       /* a host's VM */
#define PAUSED 1
#define RUNS 2
#define STANDS 3     /* handed over: it doesn't run on before this host has won the next generation */

#define CLOSED 0     /* its gate */
#define HOLDS 1
#define OPEN 2

/* An agent. */
#define DEAD 0       /* or it has done its work */
#define EXPOSED 1    /* P: the key says alone(g, P), the gate is open */
#define SYNCING 2    /* P: a session without its first RECEIVED */
#define ARMING 3     /* P: protected(g, P, S) has been asked for */
#define GUARDED 4    /* P: and has won */
#define CUT_OFF 5    /* P: no session until it has won the next generation, and its gate stays as it is */
#define RESTARTED 6  /* P: the same, but its key still names it: a session will do, too */
#define CLAIMING 7   /* P: alone(g+1, P) has been asked for */
#define FENCED 8
#define STANDBY 9    /* S */
#define TAKING 10    /* S: alone(g+1, S) has been asked for */
#define HANDING 11   /* P: HANDOVER has been sent */

/* The witness's key. Its primary's peer is the other host: there are two. */
byte revision = 1, key_generation = 1, key_mode = ALONE, key_primary = 0;
#if REMOVALS > 0
bool gone = false;
byte removals = REMOVALS;
#define GONE gone
#define COMES_BACK gone = false
#else
#define GONE false
#define COMES_BACK skip
#endif

/* What each host has asked for and doesn't know the answer of, and what it has asked for in vain, or a dead agent of it has. */
typedef Transaction { bool live; byte expected; byte mode; byte generation };
Transaction asked[2], late[2];
byte executed_at[2];  /* the revision that `asked` made; 0: not executed */

byte agent[2], vm[2], gate[2];
byte generation[2];   /* what its session or its claim is of */
byte highest[2];      /* fsynced */
byte seen_mode[2], seen_revision[2];  /* of the key, when P has read or written it last */
bool entitled[2];     /* SYNCING: the key says alone(g, P), and nothing else was asked for */
byte epoch[2];        /* that its VM is in */
byte held[2];         /* S: the last checkpoint that is whole; 0: none */

bool linked[2];       /* as this side sees the session */
byte sent[2], received[2];  /* in flight from this host: an epoch's pages; RECEIVED */
bool waits[2];        /* P: for RECEIVED */

/* In the code a last checkpoint, which the standby has loaded, comes before HANDOVER. */
#ifdef AS_CODED
#define HEARD_LAST linked[o]
#else
#define HEARD_LAST true
#endif

#if HANDOVERS > 0
byte handovers = HANDOVERS;
bool ordered[2];      /* S: HANDOVER is on its way, or has come */
bool told[2];         /* P: TOOK_OVER is on its way */
#define ORDERED(i) ordered[i]
#else
#define ORDERED(i) false
#endif

#define UP(i) (vm[i] == RUNS || vm[i] == STANDS)

byte sessions = SESSIONS, losses = LOSSES, agent_deaths = AGENT_DEATHS, host_deaths = HOST_DEATHS, failures = FAILURES;

/* What only the properties look at. */
byte line = 0;        /* whose VM the world is talking to */
byte line_begins = 0; /* the epoch that it took over from */
byte said = 0;        /* the last epoch of which output has left */
byte winner[GENERATIONS_MAX];  /* of each generation: host + 1 */
bool excused = false; /* more has failed than this is built for: nobody need run at the end */

#define TEXT(words) #words
#define STEP(name) tell_state(); printf(TEXT(step name %d\n), h)

/* As it was before the step. */
inline tell_state() {
  printf("state key %d %d %d gates %d %d vms %d %d held %d %d said %d\n", key_generation, key_mode, key_primary, gate[0], gate[1],
    vm[0], vm[1], held[0], held[1], said)
}

/* Output commit and one runner, as the world sees them: it never hears of a state that the VM which goes on has not been in. */
inline speak(n) {
  assert(line == h || n <= line_begins);
  if
  :: n > said -> said = n
  :: else
  fi
}

/* One runner. */
inline open_gate() {
  assert(gate[o] != OPEN);
  gate[h] = OPEN
}

/* A host's VM is destroyed only for one that can run. */
inline fence() {
  assert(excused || UP(o) || (agent[o] == TAKING && held[o] != 0));
  vm[h] = NONE;
  gate[h] = CLOSED;
  agent[h] = FENCED;
  linked[h] = false
}

inline ask(wanted_mode, wanted_generation) {
  asked[h].live = true;
  asked[h].expected = revision;
  asked[h].mode = wanted_mode;
  asked[h].generation = wanted_generation;
  executed_at[h] = 0
}

inline forget(t) {
  t.live = false;
  t.expected = 0;
  t.mode = 0;
  t.generation = 0
}

inline execute(t) {
  revision++;
  COMES_BACK;
  key_mode = t.mode;
  key_generation = t.generation;
  key_primary = h;
  seen = t.generation;
  assert(seen < GENERATIONS_MAX);
  /* A generation is won by one side only. */
  assert(winner[seen] == 0 || winner[seen] == h + 1);
  winner[seen] = h + 1;
  seen = 0;
  /* What compares an older revision will never be executed. */
  forget(late[0]);
  forget(late[1])
}

#ifdef MUTANT_NO_COMPARE
#define COMPARES(t) true
#else
#define COMPARES(t) (t.expected == revision)
#endif

inline settle() {
  forget(asked[h]);
  executed_at[h] = 0
}

#define UNDER_WAY (asked[h].live && executed_at[h] == 0 && asked[h].expected == revision)

/* Nobody waits for the answer any more. */
inline leave_under_way() {
  if
  :: UNDER_WAY ->
    late[h].live = true;
    late[h].expected = asked[h].expected;
    late[h].mode = asked[h].mode;
    late[h].generation = asked[h].generation
  :: UNDER_WAY && late[h].live  /* Of two that compare one revision one at most is executed: whichever it is to be is remembered. */
  :: !UNDER_WAY
  fi;
  settle()
}

/* What it knew of the session and of the key counts no more; keeping it would only make more states. */
inline forget_session() {
  linked[h] = false;
  waits[h] = false;
  sent[o] = 0;
  received[o] = 0;
#if HANDOVERS > 0
  ordered[h] = false;
  told[h] = false;
#endif
  if
  :: agent[h] != STANDBY ->
    entitled[h] = false;
    generation[h] = 0;
    seen_revision[h] = 0;
    seen_mode[h] = 0
  :: else
  fi
}

/* The agent's memory is gone. */
inline die() {
  leave_under_way();
  if
  :: gate[h] == OPEN && agent[h] != SYNCING  /* Without a session nothing of ours is under the NICs. */
  :: else -> gate[h] = CLOSED
  fi;
  agent[h] = DEAD;
  forget_session();
  sent[h] = 0;
  held[h] = 0
}

#define HOPE (key_mode == PROTECTED && key_primary == h && key_generation == generation[o] && held[o] != 0 && \
  (agent[o] == STANDBY || agent[o] == TAKING))
#define ALONE_IN_FLIGHT(t) (t.live && t.mode == ALONE && t.expected == revision)
#define LOST (asked[h].live && executed_at[h] == 0 && asked[h].expected != revision)

/* S may take over, as the key has it. A key that says neither this nor that a newer generation was won decides nothing. */
#define ENTITLED (key_mode == PROTECTED && key_primary == o && key_generation == generation[h])

#ifdef MUTANT_ANSWERS_WHILE_CLAIMING
#define GIVEN_UP true
#else
#define GIVEN_UP (!linked[h] || ORDERED(h))
#endif

#ifdef MUTANT_CLAIMS_FIRST
/* What it has claimed for isn't known to be of use. */
#define MAY_FAIL (agent[h] == STANDBY || agent[h] == TAKING)
#else
#define MAY_FAIL (agent[h] == STANDBY)
#endif

#ifdef MUTANT_HELLO_ENDS_CLAIM
#define TAKES_HELLO (agent[o] == STANDBY || agent[o] == TAKING)
#else
/* A newer generation proves that S's claim has lost. One of the same generation proves nothing: the claim may still arrive, and win. */
#define TAKES_HELLO (agent[o] == STANDBY || (agent[o] == TAKING && generation[h] > generation[o]))
#endif

#ifdef AS_CODED
#define CONNECTS (agent[h] == EXPOSED)
#else
#define CONNECTS (agent[h] == EXPOSED || agent[h] == RESTARTED)
#endif

proctype Host(byte h) {
  byte o = 1 - h, seen = 0;

end:
  do
  /* --- the witness --- */
  :: atomic { asked[h].live && executed_at[h] == 0 && COMPARES(asked[h]) ->
      STEP(witness_executes);
      execute(asked[h]);
      executed_at[h] = revision
    }
  :: atomic { late[h].live && COMPARES(late[h]) ->
      STEP(witness_executes_late);
      execute(late[h])
    }

#if REMOVALS > 0
  :: atomic { removals > 0 && h == 0 ->
      STEP(key_removed);
      removals--;
      revision++;
      forget(late[0]);
      forget(late[1]);
      gone = true
    }
#endif

  /* --- the session --- */
  :: atomic { CONNECTS && vm[h] == RUNS && TAKES_HELLO && !linked[h] && !linked[o] && sessions > 0 &&
      epoch[h] < EPOCHS && generation[h] >= highest[o] ->
      STEP(session_opens);
      sessions--;
      entitled[h] = (agent[h] == EXPOSED);
      highest[h] = generation[h];
      agent[h] = SYNCING;
#ifdef MUTANT_HELLO_ENDS_CLAIM
      /* S has given its claim up, but it may still be under way. */
      if
      :: asked[o].live && executed_at[o] == 0 && asked[o].expected == revision ->
        late[o].live = true;
        late[o].expected = asked[o].expected;
        late[o].mode = asked[o].mode;
        late[o].generation = asked[o].generation
      :: else
      fi;
#endif
      forget(asked[o]);
      executed_at[o] = 0;
      agent[o] = STANDBY;
      held[o] = 0;
      generation[o] = generation[h];
      highest[o] = generation[h];
      sent[h] = 0; received[h] = 0; sent[o] = 0; received[o] = 0; waits[h] = false;
      linked[h] = true;
      linked[o] = true
    }
  :: atomic { linked[h] && agent[h] >= SYNCING && agent[h] <= GUARDED && !waits[h] && epoch[h] < EPOCHS ->
      STEP(checkpoint_sent);
      gate[h] = HOLDS;
      sent[h] = (linked[o] -> epoch[h] : 0);
      waits[h] = true;
#ifdef MUTANT_RELEASE_WITHOUT_RECEIVED
      speak(epoch[h]);
#endif
      epoch[h]++
    }
  :: atomic { linked[h] && agent[h] == STANDBY && sent[o] != 0 ->
      STEP(checkpoint_received);
      held[h] = sent[o];
      sent[o] = 0;
      received[h] = held[h]
    }
#ifdef MUTANT_ANSWERS_WHILE_CLAIMING
  /* What it promotes is what it held when it asked. */
  :: atomic { linked[h] && agent[h] == TAKING && sent[o] != 0 ->
      STEP(checkpoint_received);
      received[h] = sent[o];
      sent[o] = 0
    }
#endif
  :: atomic { linked[h] && agent[h] >= SYNCING && agent[h] <= GUARDED && received[o] != 0 ->
      STEP(output_released);
      speak(received[o]);
      received[o] = 0;
      waits[h] = false;
      if
      :: agent[h] == SYNCING && !entitled[h] && seen_mode[h] == PROTECTED -> agent[h] = GUARDED
      :: agent[h] == SYNCING && (entitled[h] || seen_mode[h] == ALONE) ->
        agent[h] = ARMING;
        entitled[h] = false;
        ask(PROTECTED, generation[h]);
        asked[h].expected = seen_revision[h]
      :: else
      fi
    }
  :: atomic { gate[h] == OPEN && vm[h] == RUNS && (said < epoch[h] || line != h) ->
      STEP(output_passes);
      speak(epoch[h])
    }
  /* That HANDOVER isn't answered in time is no failure of the session's. */
  :: atomic { linked[h] && (losses > 0 || !linked[o] || agent[h] == HANDING) ->
      STEP(session_lost);
      if
      :: linked[o] && agent[h] != HANDING -> losses--
      :: else
      fi;
      if
      :: agent[h] == SYNCING && entitled[h] -> agent[h] = CUT_OFF; open_gate()
      :: agent[h] == SYNCING && !entitled[h] -> agent[h] = CUT_OFF
      :: agent[h] == ARMING -> leave_under_way(); agent[h] = CUT_OFF
      :: agent[h] == GUARDED -> agent[h] = CUT_OFF
#if HANDOVERS > 0
      :: agent[h] == HANDING ->
        agent[h] = CUT_OFF
#ifdef MUTANT_HANDOVER_GOES_ON
        ;
        vm[h] = RUNS;
        open_gate()
#endif
#endif
      :: else
      fi;
      forget_session()
    }

#if HANDOVERS > 0
  /* --- the planned hand-over --- */
  :: atomic { linked[h] && agent[h] == GUARDED && !waits[h] && handovers > 0 && HEARD_LAST ->
      STEP(hands_over);
      handovers--;
      vm[h] = STANDS;
      agent[h] = HANDING;
      ordered[o] = linked[o]
#ifdef MUTANT_TOOK_OVER_FIRST
      ;
      told[h] = linked[o]
#endif
    }
  :: atomic { linked[h] && agent[h] == HANDING && told[h] ->
      STEP(took_over);
      forget_session();
      fence()
    }
#endif

  /* --- claims --- */
#if defined(MUTANT_GONE_IS_LOST) || defined(MUTANT_GONE_IS_NEW)
  :: atomic { agent[h] == CUT_OFF || agent[h] == RESTARTED ->
#else
  :: atomic { (agent[h] == CUT_OFF || agent[h] == RESTARTED) && !GONE ->
#endif
      STEP(primary_claims);
      if
#ifdef MUTANT_GONE_IS_LOST
      :: gone -> fence()
      :: key_primary == h && !gone ->
#else
#ifdef MUTANT_GONE_IS_NEW
      :: key_primary == h || gone ->
#else
      :: key_primary == h ->
#endif
#endif
        ask(ALONE, key_generation + 1);
        agent[h] = CLAIMING;
#ifdef MUTANT_OPEN_BEFORE_WINNING
        open_gate()
#endif
      :: else -> fence()
      fi
    }
  :: atomic { MAY_FAIL && (!linked[h] || ORDERED(h)) && held[h] != 0 && failures > 0 ->
      STEP(take_over_fails);
      failures--;
      excused = excused || !UP(o);
#if HANDOVERS > 0
      /* ERROR: the primary claims, and its VM goes on. */
      linked[h] = false;
      ordered[h] = false;
#endif
#ifdef MUTANT_CLAIMS_FIRST
      leave_under_way();
      agent[h] = STANDBY;
#endif
      held[h] = 0
    }
  :: atomic { agent[h] == STANDBY && GIVEN_UP && held[h] != 0 && !GONE && (ENTITLED || key_generation > generation[h]) ->
      STEP(secondary_claims);
      if
      :: ENTITLED ->
        ask(ALONE, key_generation + 1);
        agent[h] = TAKING
      :: else -> held[h] = 0
      fi
    }
  :: atomic { agent[h] == ARMING && executed_at[h] != 0 ->
      STEP(protect_won);
      seen_revision[h] = executed_at[h];
      seen_mode[h] = PROTECTED;
      settle();
      agent[h] = GUARDED
    }
  :: atomic { agent[h] == CLAIMING && executed_at[h] != 0 ->
      STEP(primary_won);
      generation[h] = asked[h].generation;
      highest[h] = generation[h];
      seen_revision[h] = executed_at[h];
      seen_mode[h] = ALONE;
      settle();
      agent[h] = EXPOSED;
#if HANDOVERS > 0
      vm[h] = RUNS;
#endif
      open_gate()
    }
#ifdef MUTANT_PROMOTE_WITHOUT_WINNING
  :: atomic { agent[h] == TAKING ->
#else
  :: atomic { agent[h] == TAKING && executed_at[h] != 0 ->
#endif
      STEP(secondary_won);
      /* No commit is lost: what the world has heard of is in what goes on. */
      assert(held[h] >= said);
      highest[h] = asked[h].generation;
      settle();
      generation[h] = 0;
      line = h;
      line_begins = held[h];
      epoch[h] = held[h] + 1;
      held[h] = 0;
      vm[h] = RUNS;
      agent[h] = DEAD;
#if HANDOVERS > 0
      told[o] = linked[h] && ordered[h] && linked[o] && agent[o] == HANDING;
      ordered[h] = false;
      linked[h] = false;
#endif
      open_gate()
    }
  :: atomic { LOST ->
      STEP(lost);
      settle();
      if
      :: agent[h] == TAKING && !GONE ->
        agent[h] = STANDBY;
        held[h] = 0
      :: agent[h] != TAKING && key_primary == o && !GONE -> fence()
      /* An older transaction of this host has come in between. */
      :: agent[h] != TAKING && key_primary == h && !GONE -> forget_session(); agent[h] = CUT_OFF
#if REMOVALS > 0
      :: agent[h] == TAKING && gone -> agent[h] = STANDBY
      :: agent[h] != TAKING && gone -> forget_session(); agent[h] = CUT_OFF
#endif
      fi
    }
#ifdef MUTANT_LOST_REPLY_IS_NO
  :: atomic { agent[h] == ARMING ->
      STEP(lost_reply_is_no);
      late[h].live = (asked[h].live && executed_at[h] == 0 && asked[h].expected == revision);
      late[h].expected = revision;
      late[h].mode = PROTECTED;
      late[h].generation = generation[h];
      settle();
      agent[h] = SYNCING;
      entitled[h] = true;
      if
      :: linked[h]
      :: !linked[h] -> agent[h] = EXPOSED; entitled[h] = false; open_gate()
      fi
    }
#endif

  /* --- failures --- */
  :: atomic { agent_deaths > 0 && agent[h] != DEAD && agent[h] != FENCED ->
      STEP(agent_dies);
      agent_deaths--;
      /* A claim that may win is gone with the checkpoint that it was for; or the only checkpoint is. */
      excused = excused || agent[h] == TAKING || (agent[h] == STANDBY && !UP(o));
      die()
    }
  :: atomic { host_deaths > 0 && (agent[h] != DEAD || vm[h] != NONE) && agent[h] != FENCED ->
      STEP(host_dies);
      host_deaths--;
      excused = excused || agent[h] == TAKING || (agent[h] == STANDBY && !UP(o)) || (UP(h) &&
        (!HOPE || ALONE_IN_FLIGHT(asked[h]) || ALONE_IN_FLIGHT(late[h])));
      die();
      vm[h] = NONE;
      gate[h] = CLOSED;
#ifdef MUTANT_FORGETS_HIGHEST
      highest[h] = 0;
#endif
      epoch[h] = 0
    }
  :: atomic { agent[h] == DEAD && UP(h) && !GONE ->
      STEP(agent_starts);
      if
      :: key_primary == h ->
        agent[h] = RESTARTED;
        generation[h] = key_generation;
        seen_revision[h] = revision;
        seen_mode[h] = key_mode;
#ifdef MUTANT_RESTART_OPENS
        agent[h] = EXPOSED;
        open_gate()
#endif
      :: else -> fence()
      fi
    }
  :: atomic { (agent[h] == DEAD && !UP(h)) || agent[h] == FENCED ->
      STEP(joins_as_standby);
      agent[h] = STANDBY;
      vm[h] = PAUSED;
      held[h] = 0;
      epoch[h] = 0;
      generation[h] = highest[h]
    }
  od
}

#define IN_SERVICE(i, j) (vm[i] == RUNS && (gate[i] == OPEN || (agent[i] == GUARDED && linked[i] && linked[j])))

/* Nothing is left to happen: somebody runs, and is heard. */
proctype Judge() {
end:
  timeout;
  tell_state();
  assert(excused || GONE || IN_SERVICE(0, 1) || IN_SERVICE(1, 0))
}

/* Host 0 runs alone. */
init {
  atomic {
    agent[0] = EXPOSED;
    vm[0] = RUNS;
    gate[0] = OPEN;
    generation[0] = 1;
    highest[0] = 1;
    epoch[0] = 1;
    seen_revision[0] = 1;
    winner[1] = 1;
    agent[1] = STANDBY;
    vm[1] = PAUSED;
    run Host(0);
    run Host(1);
    run Judge()
  }
}
