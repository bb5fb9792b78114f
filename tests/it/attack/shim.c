/* A library for LD_PRELOAD that disturbs a program at its n-th call of a kind, and shifts its clock.
 *
 *   ATTACK_ROOTS=/a:/b        absolute folders: only calls on files below them count
 *   ATTACK_LOG=FILE           appends "KIND NUMBER PATH" for each call that counts
 *   ATTACK_AT=rename:3        disturb at the third rename
 *   ATTACK_DO=before          SIGKILL instead of the call
 *   ATTACK_DO=after           SIGKILL after the call
 *   ATTACK_DO=torn            SIGKILL after half of the bytes of a write, instead of other calls
 *   ATTACK_DO=stop            SIGSTOP before the call
 *   ATTACK_CLOCK=3600,-60     seconds added to the real-time clock; the offset changes after every 64 readings
 *
 * Kinds: create write sync truncate rename link unlink mkdir, and put, post, delete for HTTP requests without TLS.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { CREATE, WRITE, SYNC, TRUNCATE, RENAME, LINK, UNLINK, MKDIR, PUT, POST, DELETE, KINDS };
static const char *const names[KINDS] = {"create", "write", "sync",  "truncate", "rename", "link",
                                         "unlink", "mkdir", "put", "post",     "delete"};
enum what { NOTHING, BEFORE, AFTER, TORN, STOP };

static const char *roots;
static int log_file = -1;
static enum kind at_kind = KINDS;
static unsigned long at_number;
static enum what what;
static unsigned long counts[KINDS];
static long offsets[16];
static unsigned long offsets_count;
static unsigned long readings;

__attribute__((constructor)) static void begin(void) {
    roots = getenv("ATTACK_ROOTS");
    const char *log = getenv("ATTACK_LOG");
    if (log != NULL) {
        log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    }
    const char *at = getenv("ATTACK_AT");
    for (int kind = 0; at != NULL && kind < KINDS; kind++) {
        size_t length = strlen(names[kind]);
        if (strncmp(at, names[kind], length) == 0 && at[length] == ':') {
            at_kind = kind;
            at_number = strtoul(at + length + 1, NULL, 10);
        }
    }
    const char *act = getenv("ATTACK_DO");
    if (act != NULL) {
        what = strcmp(act, "before") == 0  ? BEFORE
               : strcmp(act, "after") == 0 ? AFTER
               : strcmp(act, "torn") == 0  ? TORN
               : strcmp(act, "stop") == 0  ? STOP
                                           : NOTHING;
    }
    const char *clock = getenv("ATTACK_CLOCK");
    while (clock != NULL && offsets_count < 16) {
        offsets[offsets_count++] = strtol(clock, NULL, 10);
        clock = strchr(clock, ',');
        clock = clock == NULL ? NULL : clock + 1;
    }
}

static int is_below(const char *path) {
    for (const char *root = roots; root != NULL && *root != '\0';) {
        const char *end = strchrnul(root, ':');
        size_t length = (size_t)(end - root);
        if (strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == '\0')) return 1;
        root = *end == ':' ? end + 1 : end;
    }
    return 0;
}

/* Resolves a name in a folder to its absolute path; returns 0 if there is none. */
static int resolve(int folder, const char *name, char *path) {
    if (name == NULL) return 0;
    if (name[0] == '/') return snprintf(path, PATH_MAX, "%s", name) > 0;
    char link[64];
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    while (name[0] == '.' && name[1] == '/') name += 2;
    return snprintf(path + length, (size_t)(PATH_MAX - length), "/%s", name) > 0;
}

static int path_of(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = '\0';
    return 1;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a call and, if configured, dies or stops before it. Returns whether to die during or after it. */
static enum what counted(enum kind kind, const char *path) {
    unsigned long number = __atomic_add_fetch(&counts[kind], 1, __ATOMIC_RELAXED);
    enum what now = kind == at_kind && number == at_number ? what : NOTHING;
    if (log_file >= 0) {
        static const char *const said[] = {"", " <- killed before", " <- killed after", " <- killed within", " <- stopped before"};
        char line[PATH_MAX + 100];
        int length = snprintf(line, sizeof line, "%s %lu %s%s\n", names[kind], number, path, said[now]);
        syscall(SYS_write, log_file, line, (size_t)length);
    }
    if (now == BEFORE) die();
    if (now == STOP) kill(getpid(), SIGSTOP);
    return now;
}

static enum what at_path(enum kind kind, int folder, const char *name) {
    int saved = errno;
    char path[PATH_MAX + 64];
    enum what now = NOTHING;
    if (roots != NULL && resolve(folder, name, path) && is_below(path)) now = counted(kind, path);
    if (now == TORN) die();
    errno = saved;
    return now;
}

static enum what at_file(enum kind kind, int file) {
    int saved = errno;
    char path[PATH_MAX + 64];
    enum what now = NOTHING;
    if (roots != NULL && path_of(file, path) && is_below(path)) now = counted(kind, path);
    if (now == TORN && kind != WRITE) die();
    errno = saved;
    return now;
}

/* Detects the start of an HTTP request in bytes that go to a socket. */
static enum what at_request(int file, const char *bytes, size_t length) {
    if (roots == NULL || length < 8) return NOTHING;
    enum kind kind = memcmp(bytes, "PUT /", 5) == 0      ? PUT
                     : memcmp(bytes, "POST /", 6) == 0   ? POST
                     : memcmp(bytes, "DELETE /", 8) == 0 ? DELETE
                                                         : KINDS;
    if (kind == KINDS) return NOTHING;
    int saved = errno, type;
    socklen_t size = sizeof type;
    enum what now = NOTHING;
    if (getsockopt(file, SOL_SOCKET, SO_TYPE, &type, &size) == 0) {
        char target[200];
        size_t shown = length < sizeof target ? length : sizeof target - 1;
        memcpy(target, bytes, shown);
        target[shown] = '\0';
        target[strcspn(target, "\r\n")] = '\0';
        now = counted(kind, target);
    }
    errno = saved;
    return now;
}

/* Gives the server time to execute the request; nobody reads the response. */
static void after(enum what now, int is_request) {
    if (now != AFTER && now != TORN) return;
    if (is_request) {
        struct timespec pause = {0, 20000000};
        nanosleep(&pause, NULL);
    }
    die();
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); \
    if (real == NULL) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define DONE(call) do { __typeof__(call) result = (call); after(now, 0); return result; } while (0)

#define OPEN(name, folder, real_arguments, ...) \
    int name(__VA_ARGS__, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        REAL(int, name, __VA_ARGS__, int, ...); \
        enum what now = flags & O_CREAT ? at_path(CREATE, folder, path) : NOTHING; \
        DONE(real real_arguments); \
    }
OPEN(open, AT_FDCWD, (path, flags, mode), const char *path)
OPEN(open64, AT_FDCWD, (path, flags, mode), const char *path)
OPEN(openat, folder, (folder, path, flags, mode), int folder, const char *path)
OPEN(openat64, folder, (folder, path, flags, mode), int folder, const char *path)

ssize_t write(int file, const void *bytes, size_t length) {
    REAL(ssize_t, write, int, const void *, size_t);
    enum what now = at_request(file, bytes, length);
    int is_request = now != NOTHING;
    if (!is_request) now = at_file(WRITE, file);
    ssize_t written = real(file, bytes, now == TORN ? length / 2 : length);
    after(now, is_request);
    return written;
}

ssize_t send(int file, const void *bytes, size_t length, int flags) {
    REAL(ssize_t, send, int, const void *, size_t, int);
    enum what now = at_request(file, bytes, length);
    ssize_t sent = real(file, bytes, now == TORN ? length / 2 : length, flags);
    after(now, 1);
    return sent;
}

ssize_t writev(int file, const struct iovec *pieces, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    enum what now = count > 0 ? at_request(file, pieces[0].iov_base, pieces[0].iov_len) : NOTHING;
    int is_request = now != NOTHING;
    if (!is_request) now = at_file(WRITE, file);
    ssize_t written = real(file, pieces, now == TORN && count > 1 ? count / 2 : count);
    after(now, is_request);
    return written;
}

#define PWRITE(name) \
    ssize_t name(int file, const void *bytes, size_t length, off_t offset) { \
        REAL(ssize_t, name, int, const void *, size_t, off_t); \
        enum what now = at_file(WRITE, file); \
        DONE(real(file, bytes, now == TORN ? length / 2 : length, offset)); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_FILE(kind, name, arguments, ...) \
    int name(__VA_ARGS__) { \
        REAL(int, name, __VA_ARGS__); \
        enum what now = at_file(kind, file); \
        DONE(real arguments); \
    }
ON_FILE(SYNC, fsync, (file), int file)
ON_FILE(SYNC, fdatasync, (file), int file)
ON_FILE(TRUNCATE, ftruncate, (file, length), int file, off_t length)
ON_FILE(TRUNCATE, ftruncate64, (file, length), int file, off_t length)

#define ON_PATH(kind, folder, path, name, arguments, ...) \
    int name(__VA_ARGS__) { \
        REAL(int, name, __VA_ARGS__); \
        enum what now = at_path(kind, folder, path); \
        DONE(real arguments); \
    }
ON_PATH(RENAME, AT_FDCWD, to, rename, (from, to), const char *from, const char *to)
ON_PATH(RENAME, there, to, renameat, (here, from, there, to), int here, const char *from, int there, const char *to)
ON_PATH(RENAME, there, to, renameat2, (here, from, there, to, flags), int here, const char *from, int there, const char *to, unsigned flags)
ON_PATH(LINK, AT_FDCWD, to, link, (from, to), const char *from, const char *to)
ON_PATH(LINK, there, to, linkat, (here, from, there, to, flags), int here, const char *from, int there, const char *to, int flags)
ON_PATH(UNLINK, AT_FDCWD, path, unlink, (path), const char *path)
ON_PATH(UNLINK, AT_FDCWD, path, rmdir, (path), const char *path)
ON_PATH(UNLINK, folder, path, unlinkat, (folder, path, flags), int folder, const char *path, int flags)
ON_PATH(MKDIR, AT_FDCWD, path, mkdir, (path, mode), const char *path, mode_t mode)

static long offset(void) {
    if (offsets_count == 0) return 0;
    return offsets[__atomic_fetch_add(&readings, 1, __ATOMIC_RELAXED) / 64 % offsets_count];
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out != NULL) *out = exact.tv_sec;
    return exact.tv_sec;
}
