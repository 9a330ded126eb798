/*
How a batch of visits is counted exactly once.

This is the protocol between the recorder of each instance and PostgreSQL, with
nothing in it of HTTP, SQL or pages. `make model` lets spin search every order of
its steps, and then again with each guard taken away, which must end in a
counterexample. Where a step is a line of the program, the comment quotes it; a
test compares the quotations.

The world: two instances, three batches, a primary and its synchronous standby.
A request may get lost, arrive late, or be there twice, as the recorder sends it
again while the first is still on its way; an answer may get lost. An instance may crash or give a batch up at any moment, and goes on with the next
one. The primary may restart; it may be lost, and the standby takes its place. A
session that waits for the standby may be terminated or canceled. A row of writers
may go at any moment. Any two of the last five happen in a run.

What must hold, in every state:

    once        no batch is applied twice
    durable     a batch that was confirmed is on the standby, and so on whichever
                server is the primary later
    honest      a batch of which the visitors were told that it was not counted
                is never applied
    own         a batch is answered with its own receipt
*/

#define BATCHES 3       /* 1 and 2 are the first instance's, 3 is the second's */
#define WRITERS 6       /* ids that can be given out */
#define TRIES   2       /* how often a batch is sent */
#ifndef TROUBLE
#define TROUBLE 3       /* how much goes wrong */
#endif
#define NOTHING 0       /* no batch: an entry that only touches a row */
#define FORGET  255     /* no number: an entry that removes a row */

/* What a server has. Its tables are small here: for each writer its row, for
   each batch how often it is in the totals. */

typedef server {
	byte row[WRITERS];      /* 0: there is none; n+1: the last batch applied was n */
	byte receipt[WRITERS];  /* of which batch */
	byte applied[BATCHES + 1]
}
server primary, standby;

/* The standby receives what the primary writes, in order, some time later. */

chan wal = [8] of { byte, byte, byte };  /* writer, number, batch */
byte written, flushed;                   /* how much is written; how much of it the standby has */
byte era;                                /* of all connections: a restart or a failover ends them */

byte ids;               /* of writers, given out so far */
bool locked[WRITERS];   /* the row is locked by a transaction */
byte before[WRITERS];   /* what others still see of it */

/* What the visitors of a batch were told. */

bool confirmed[BATCHES + 1], denied[BATCHES + 1];

/* How much more goes wrong, beside lost requests, lost answers and crashes. */

byte trouble = TROUBLE;

chan requests = [3] of { byte, byte, byte, byte, byte, byte };   /* instance, try, era of its connection, writer, number, batch */
mtype = { committed, warned, gone };
chan answers[2] = [1] of { mtype, byte };                  /* what became of the try, whose receipt */
#define NONE 255
byte awaited[2] = NONE;                                    /* which try; of another one no answer arrives */

inline answer(what, whose) {
	if
	:: awaited[i] == try && len(answers[i]) == 0 -> answers[i]!what, whose
	:: else
	fi
}

inline apply(s, w, n, b) {
	s.row[w] = (n == FORGET -> 0 : n + 1);
	if
	:: b != NOTHING -> s.receipt[w] = b; s.applied[b]++
	:: else
	fi
}

/* A transaction writes: the primary has it, the standby will. */
inline write(w, n, b) {
	before[w] = primary.row[w];
	locked[w] = true;
	apply(primary, w, n, b);
	assert(primary.applied[b] <= 1 || b == NOTHING);        /* once */
	assert(!denied[b]);                                     /* honest */
	wal!w, n, b;
	written++;
	position = written
}

/* A session of PostgreSQL carries out one statement after the other. The
   instance may have left long ago. */

active [2] proctype session() {
	byte i, try, w, n, b, position, began, seen;
	bool now;
end:	do
	:: atomic { requests??i, try, began, w, n, b ->         /* any of them: they overtake one another */
#ifdef NO_ROW_LOCK
		seen = (locked[w] -> before[w] : primary.row[w]);
#endif
		/* The row of the writer is locked first: batch.go: `FOR UPDATE`. Another try
		   of the same batch waits here, and then looks at what the first has left. */
		!locked[w] || era != began;
#ifndef NO_ROW_LOCK
		seen = primary.row[w];
#endif
		if
		:: era != began                                 /* the session has ended with its server */
		:: era == began && seen == 0 -> answer(gone, NOTHING)
#ifdef NO_NUMBER
		:: era == began && seen != 0 -> write(w, n, b); now = true
#else
		/* It applies only to the state that it was made for: batch.go:
		   `WHERE id = $1::bigint AND batch = $2::bigint - 1`. The row moves on in the same
		   transaction: batch.go: `batch = $2::bigint,`. */
		:: era == began && seen == n -> write(w, n, b); now = true
		/* Applied already: its receipt is the answer. The row is written again, so that
		   this commit waits for the standby even if that of the batch did not to its
		   end: batch.go: `UPDATE writers SET committed_at = now() WHERE id = $1::bigint AND batch = $2::bigint`. */
		:: era == began && seen == n + 1 ->
#ifdef REPLAY_READS
			answer(committed, primary.receipt[w])
#else
			write(w, n, NOTHING); now = true
#endif
		:: era == began && seen != 0 && seen != n && seen != n + 1 -> answer(gone, NOTHING)
#endif
		fi
	   };
	   atomic {
		if
		:: now ->
			/* The commit: PostgreSQL answers when the standby has it. */
			if
#ifdef NO_WAIT
			:: era == began -> answer(committed, primary.receipt[w]); locked[w] = false
#else
			:: era == began && flushed >= position -> answer(committed, primary.receipt[w]); locked[w] = false
#endif
			:: era != began
			:: era == began && trouble > 0 ->       /* terminated: no answer */
				trouble--; locked[w] = false
			:: era == began && trouble > 0 ->       /* canceled: it answers all the same, with a warning */
				trouble--; locked[w] = false; answer(warned, primary.receipt[w])
			fi
		:: else
		fi;
		i = 0; try = 0; w = 0; n = 0; b = 0; position = 0; began = 0; seen = 0; now = false
	   }
	od
}

/* The connection of a try is left, and no answer comes by it any longer:
   batch.go: `driver.ErrBadConn`. */
inline leave() {
	try++;
#ifndef CONNECTION_KEPT
	awaited[i] = NONE;
#endif
	if
	:: answers[i]?_, _
	:: empty(answers[i])
	fi
}

/* The recorder of an instance: one batch after the other. */

proctype recorder(byte i; byte b; byte last) {
	byte writer, number, try, tries, position, began, r;
	bool sent;
	do
	:: b > last -> break
	:: b <= last ->
again:	   atomic {
		if
		:: writer == 0 ->
			/* A row of its own, under an id that was never given out: batch.go:
			   `INSERT INTO writers (id) VALUES ($1)`. It is there once the standby has it. */
			ids < WRITERS - 1;
			ids++; began = era;
			apply(primary, ids, 0, NOTHING); wal!ids, 0, NOTHING; written++; position = written; writer = ids;
			if
			:: era == began && flushed >= position -> number = 0
			:: era != began -> writer = 0;
				if
				:: sent -> goto over                     /* 503: may have been counted */
				:: else -> assert(primary.applied[b] == 0); denied[b] = true; goto over
				fi
			fi
		:: else
		fi;
		/* recorder.go: `applyBatch(ctx, r.writer, r.number+1, date, ids, visits)`. */
		awaited[i] = try; tries++;
		if
		:: requests!i, try, era, writer, number + 1, b
		:: trouble > 0 -> trouble--                     /* lost on the way */
		fi
	   };
	   atomic {
		if
		:: answers[i]?committed, r ->
			assert(r == b);                                                /* own */
			confirmed[b] = true;
			assert(standby.applied[b] == 1 && primary.applied[b] == 1);    /* durable */
			number++; leave(); goto next
		:: answers[i]?warned, r ->
			/* Committed, perhaps without the standby: batch.go: `err == nil && warning != nil`. */
#ifdef WARNING_UNHEARD
			confirmed[b] = true; number++; leave(); goto next
#else
			leave(); sent = true; goto retry
#endif
		:: answers[i]?gone, r -> leave(); writer = 0;
			/* Not applied by this try. If it is the first one, the batch goes under another
			   row; an earlier one may have been applied: recorder.go: `errors.Is(err, errWriterGone) && !sent`. */
			if
#ifdef GONE_AGAIN
			:: tries <= TRIES -> goto again
#else
			:: !sent && tries < TRIES -> goto again
			:: sent -> goto next                                      /* 503: may have been counted */
#endif
			:: !sent && tries == TRIES -> goto unsent
			fi
		:: trouble > 0 -> trouble--; leave(); sent = true; goto retry     /* the connection broke */
		:: trouble > 0 -> trouble--; leave(); writer = 0; goto next       /* crashed: another process goes on */
		:: timeout -> leave(); sent = true; goto retry                    /* nothing will come */
		fi;
retry:		if
		/* The same number again: recorder.go: `case postgres.Retryable(err) && ctx.Err() == nil: // try again`. */
		:: tries < TRIES ->
#ifdef NEW_WRITER
			writer = 0;
#endif
			goto again
		/* Given up. What became of the batch is unknown, so its number is never used for
		   another one: recorder.go: `case sent: r.writer = 0`. */
		:: true ->
#ifndef NUMBER_AGAIN
			writer = 0;
#endif
#ifdef DENIED_AFTER_SENT
			goto unsent;
#endif
			goto next
		fi;
		/* Never sent, or refused at the first try: it is certainly not counted, and the
		   visitors are told so: recorder.go: `sent = sent || !refused && !errors.Is(err, errNotSent)`. */
unsent:		assert(primary.applied[b] == 0 && standby.applied[b] == 0);
		denied[b] = true;
next:		skip
	   };
over:	   atomic { b++; tries = 0; sent = false; position = 0; began = 0; r = 0 }
	od
}

/* The standby takes in what comes. */

active proctype replication() {
	byte w, n, b;
end:	do
	:: atomic { wal?w, n, b -> apply(standby, w, n, b); flushed++; w = 0; n = 0; b = 0 }
	od
}

inline copy(to, from) {
	x = 0;
	do
	:: x < WRITERS -> to.row[x] = from.row[x]; to.receipt[x] = from.receipt[x]; locked[x] = false; x++
	:: else -> break
	od;
	x = 0;
	do
	:: x <= BATCHES -> to.applied[x] = from.applied[x]; x++
	:: else -> break
	od
}

/* What goes wrong besides. */

active proctype world() {
	byte x, w, n, b;
end:	do
	:: atomic { trouble > 0 -> trouble--; era++;
		x = 0;
		do
		:: x < WRITERS -> locked[x] = false; x++
		:: else -> break
		od;
		x = 0 }
	:: atomic { trouble > 0 -> trouble--; era++;
		do
		:: wal?w, n, b
		:: empty(wal) -> break
		od;
		written = flushed;
		copy(primary, standby);
		x = 0; w = 0; n = 0; b = 0;
		assert(!confirmed[1] || primary.applied[1] == 1);       /* durable */
		assert(!confirmed[2] || primary.applied[2] == 1);
		assert(!confirmed[3] || primary.applied[3] == 1) }
	/* The row of a process that is thought dead: batch.go: `DELETE FROM writers`. No
	   matter that it only goes a day after its last batch: nothing here relies on it. */
	:: atomic { trouble > 0 && ids > 0 -> trouble--;
		w = 1;
		do
		:: w < ids -> w++
		:: break
		od;
		if
		:: !locked[w] -> apply(primary, w, FORGET, NOTHING); wal!w, FORGET, NOTHING; written++
		:: else
		fi;
		w = 0 }
	od
}

init { atomic { run recorder(0, 1, 2); run recorder(1, 3, 3) } }
