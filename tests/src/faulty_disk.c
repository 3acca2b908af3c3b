/* A disk that fails: writes find no space while DISK_FAULTS/full exists, flushes fail while
   DISK_FAULTS/unflushed does, and do not return while DISK_FAULTS/hung does, for the files whose path holds what
   the switch's file says. DISK_FAULTS/hanging appears once a flush hangs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static ssize_t really_read(int fd, void *to, size_t most) {
    REAL(ssize_t, "read", int, void *, size_t);
    return real(fd, to, most);
}

static int is_faulty(int fd, const char *which) {
    char path[4096], wanted[256], link[64], file[4096];
    const char *dir = getenv("DISK_FAULTS");
    int saved = errno, faulty = 0;
    if (!dir) return 0;
    snprintf(path, sizeof path, "%s/%s", dir, which);
    int told = open(path, O_RDONLY | O_CLOEXEC);
    if (told >= 0) {
        ssize_t length = really_read(told, wanted, sizeof wanted - 1);
        close(told);
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t named = readlink(link, file, sizeof file - 1);
        if (length > 0 && named > 0) {
            wanted[length] = 0;
            file[named] = 0;
            faulty = strstr(file, wanted) != NULL;
        }
    }
    errno = saved;
    return faulty;
}

static void hang(int fd) {
    char path[4096];
    if (!is_faulty(fd, "hung")) return;
    snprintf(path, sizeof path, "%s/hanging", getenv("DISK_FAULTS"));
    int told = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (told >= 0) close(told);
    while (is_faulty(fd, "hung")) usleep(5000);
}

#define FULL(fd) if (is_faulty(fd, "full")) { errno = ENOSPC; return -1; }
#define UNFLUSHED(fd) if (is_faulty(fd, "unflushed")) { errno = EIO; return -1; }

ssize_t write(int fd, const void *from, size_t bytes) {
    REAL(ssize_t, "write", int, const void *, size_t);
    FULL(fd)
    return real(fd, from, bytes);
}
ssize_t pwrite(int fd, const void *from, size_t bytes, off_t at) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    FULL(fd)
    return real(fd, from, bytes, at);
}
ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    FULL(fd)
    return real(fd, from, bytes, at);
}
ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at) {
    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
    FULL(fd)
    return real(fd, from, count, at);
}
ssize_t pwritev64(int fd, const struct iovec *from, int count, off64_t at) {
    REAL(ssize_t, "pwritev64", int, const struct iovec *, int, off64_t);
    FULL(fd)
    return real(fd, from, count, at);
}
int fallocate(int fd, int mode, off_t at, off_t bytes) {
    REAL(int, "fallocate", int, int, off_t, off_t);
    FULL(fd)
    return real(fd, mode, at, bytes);
}
int posix_fallocate(int fd, off_t at, off_t bytes) {
    REAL(int, "posix_fallocate", int, off_t, off_t);
    if (is_faulty(fd, "full")) return ENOSPC;
    return real(fd, at, bytes);
}
int fsync(int fd) {
    REAL(int, "fsync", int);
    hang(fd);
    UNFLUSHED(fd)
    return real(fd);
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    hang(fd);
    UNFLUSHED(fd)
    return real(fd);
}
