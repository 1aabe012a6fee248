// Links: frames over one stream socket for each pair of workers. See links.c; experts/exchange/links has the Python side.

#ifndef TOKENYARD_LINKS_H
#define TOKENYARD_LINKS_H

#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define LINKS_MAGIC 0x314b4c54u  // "TLK1" in little-endian order
#define LINKS_ROW 7              // int64 numbers of a header's row
#define LINKS_NOTED 8            // epochs whose ends are remembered

enum kind { MEET = 1, HEADER = 2, IDS = 3, ROWS = 4, SUMS = 5, ABORT = 6, LEAVE = 7 };

// How a call ended.
enum outcome {
    DONE = 0,
    OVER = 1,       // the epoch was ended here
    LEFT = 2,       // a member has ended the epoch, or is in a later one
    DEAD = 3,       // a connection has ended
    LATE = 4,       // the deadline passed
    MALFORMED = 5,  // what came is no frame of these links
    ASTRAY = 6,     // a frame of another step or layer, or with other sizes
    NO_MEMORY = 7,
};

// 64 bytes before each body, little-endian on the wire as in memory (see the check in links.c).
typedef struct {
    uint64_t sequence;  // of this direction of the connection, from 0
    uint64_t step;
    uint64_t bytes;  // of the body
    uint32_t epoch, version;
    uint32_t rows, incarnation;  // incarnation: of the sender
    uint16_t layer;
    uint8_t kind, flags;
    uint32_t magic;
    uint64_t unused[2];
} frame;

// One connection. All fields belong to the lock of its hub.
typedef struct {
    int fd;
    uint32_t incarnation, theirs;  // of this end, and of the other
    uint64_t most;                 // bytes of a body that are taken
    int error;                     // errno that ended it, 0 = none, -1 = the other end closed it
    int malformed;                 // what came is no frame
    uint64_t sent, received;       // frames
    uint8_t *out;                  // what is on its way out: [out_at, out_end)
    size_t out_room, out_at, out_end;
    frame head;  // what is coming in: `got` bytes of head and body
    size_t got;
    uint8_t *body;
    size_t body_room;
    int ready;            // a whole frame that nobody took
    frame next;           // `ahead` bytes of the head behind it
    size_t ahead;
    // The last epochs that the other end broke, and that it left, in the order in which it said so, -1 = none. Those that it
    // prepared and gave up are left before the one under way.
    int64_t over[LINKS_NOTED], left[LINKS_NOTED];
} peer;

typedef struct {
    pthread_mutex_t lock;
} hub;

// The links of one epoch's members, in their order. peer: NULL for this one. missing: whom a call under way waits for.
typedef struct {
    hub *hub;
    int32_t size, me;
    uint32_t epoch;
    int32_t wake;           // an eventfd that ends polls
    volatile int32_t over;  // this end is out of the epoch
    int32_t busy, used;     // busy: a call is under way, or one has failed; used: there was one
    peer **peer;
    uint8_t *missing;
    uint64_t bytes;  // that calls have sent
    struct pollfd *polls;
    int32_t *polled;
} circle;

// What a call that did not end well found. member: -1 = nobody
typedef struct {
    int32_t member, error;
    frame found;
} finding;

// What every data frame of a layer says, and until when its peers are waited for (CLOCK_MONOTONIC, ns).
typedef struct {
    uint64_t step;
    int64_t until;
    uint32_t version;
    int32_t layer, kind;
} moment;

// What the Python side calls, as links.c says beside each.
hub *tokenyard_links_hub(void);
void tokenyard_links_free_hub(hub *h);
peer *tokenyard_links_peer(int fd, uint32_t incarnation, uint32_t theirs, uint64_t most);
void tokenyard_links_free_peer(peer *p);
circle *tokenyard_links_circle(hub *h, int32_t size, int32_t me, uint32_t epoch, peer **peers);
void tokenyard_links_free_circle(circle *c);
uint8_t *tokenyard_links_missing(circle *c);
uint64_t *tokenyard_links_bytes(circle *c);
void tokenyard_links_wake(circle *c);
void tokenyard_links_abort(circle *c);
void tokenyard_links_died(hub *h, peer *p);
int tokenyard_links_idle(circle *c, int64_t until);
int tokenyard_links_usable(hub *h, peer *p, uint32_t epoch);
int tokenyard_links_meet(circle *c, const uint8_t *whom, const uint8_t *say, int64_t until, finding *f);
int tokenyard_links_header(circle *c, int64_t *rows, uint64_t step, int32_t leader, int64_t until,
                           finding *f);

// Calls that run with the hub's lock; `links_enter` and `links_leave` take and give it.
uint8_t *links_frame(circle *c, int member, const moment *at, uint32_t rows, uint64_t bytes);
int64_t links_now(void);  // ns of CLOCK_MONOTONIC
int links_flush(peer *p);
int links_run(circle *c, const uint8_t *from, const moment *at, finding *f);
int links_fits(const peer *p, const moment *at);
void links_drop(peer *p);
int links_fail(finding *f, int outcome, int member, int error, const frame *found);
int links_enter(circle *c, finding *f);
int links_leave(circle *c, int outcome);

#endif
