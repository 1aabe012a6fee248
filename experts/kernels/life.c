// Who is alive: words that the kernel marks when the thread that holds them ends, before it frees the process's memory and
// closes its sockets. Robust futexes (set_robust_list(2)), through glibc's robust mutexes, whose first word is the futex.
//
// A process holds one word for each that watches it, all by one thread, which never ends by itself.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WORD_BYTES 4096
#define MOST_WORDS 120  // of one call of `wait`: futex_waitv takes 128

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

typedef struct {
    uint64_t val, uaddr;
    uint32_t flags, reserved;
} awaited;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;  // of those that ask
static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER, held = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t *wanted;  // that the holding thread is to lock
static int locked;               // what came of it
static pid_t holder;             // the process whose thread holds: a forked child has none

static void *hold(void *unused) {
    (void)unused;
    pthread_mutex_lock(&door);
    for (;;) {
        while (!wanted) pthread_cond_wait(&asked, &door);
        locked = pthread_mutex_lock(wanted);
        wanted = NULL;
        pthread_cond_signal(&held);
    }
    return NULL;
}

static int hold_word(pthread_mutex_t *word) {
    pthread_mutex_lock(&turn);
    pthread_mutex_lock(&door);
    int failed = 0;
    if (holder != getpid()) {
        pthread_t thread;
        failed = pthread_create(&thread, NULL, hold, NULL);
        if (!failed) pthread_detach(thread), holder = getpid();
    }
    if (!failed) {
        wanted = word;
        pthread_cond_signal(&asked);
        while (wanted) pthread_cond_wait(&held, &door);
        failed = locked;
    }
    pthread_mutex_unlock(&door);
    pthread_mutex_unlock(&turn);
    return failed;
}

// The descriptor of a new word that this process holds until it dies, or -errno. It stays mapped here.
int tokenyard_life_word(void) {
    int fd = memfd_create("tokenyard-life", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -errno;
    pthread_mutex_t *word = MAP_FAILED;
    if (ftruncate(fd, WORD_BYTES) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        word = mmap(NULL, WORD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int failed = word == MAP_FAILED ? errno : 0;
    if (!failed) {
        pthread_mutexattr_t kind;
        pthread_mutexattr_init(&kind);
        pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
        pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
        failed = pthread_mutex_init(word, &kind);
        pthread_mutexattr_destroy(&kind);
        if (!failed) failed = hold_word(word);
    }
    if (!failed) return fd;
    if (word != MAP_FAILED) munmap(word, WORD_BYTES);
    close(fd);
    return -failed;
}

static int is_dead(uint32_t value) { return (value & FUTEX_OWNER_DIED) || !(value & FUTEX_TID_MASK); }

// Sleeps until the holder of one of the words has died (its index), or `control` is not `seen` any more (-1), or this
// kernel cannot wait so (-2). Who waits says so in the word, since the kernel wakes only then.
int tokenyard_life_wait(uint32_t **words, int32_t count, uint32_t *control, uint32_t seen) {
    awaited all[MOST_WORDS + 1];
    if (count > MOST_WORDS) return -2;
    for (;;) {
        for (int i = 0; i < count; i++) {
            uint32_t value = __atomic_load_n(words[i], __ATOMIC_ACQUIRE);
            while (!is_dead(value) && !(value & FUTEX_WAITERS))
                if (__atomic_compare_exchange_n(words[i], &value, value | FUTEX_WAITERS, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                    value |= FUTEX_WAITERS;
            if (is_dead(value)) return i;
            all[i] = (awaited){.val = value, .uaddr = (uintptr_t)words[i], .flags = 2};  // 32 bits, shared
        }
        all[count] = (awaited){.val = seen, .uaddr = (uintptr_t)control, .flags = 2 | FUTEX_PRIVATE_FLAG};
        long woken = syscall(SYS_futex_waitv, all, count + 1, 0, NULL, CLOCK_MONOTONIC);
        if (woken < 0 && errno != EAGAIN && errno != EINTR) return -2;
        if (__atomic_load_n(control, __ATOMIC_ACQUIRE) != seen) return -1;
    }
}

// Changes `control`, which ends a wait for it.
void tokenyard_life_wake(uint32_t *control) {
    __atomic_add_fetch(control, 1, __ATOMIC_ACQ_REL);
    syscall(SYS_futex, control, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1 << 30, NULL, NULL, 0);
}
