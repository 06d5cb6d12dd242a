/*
 * The test guest's only program: pid 1 of an initramfs. It writes its disks at random, remembers in its memory what it wrote,
 * and can say at any time whether all of it is still there. Moved between hosts it so proves disks, memory and downtime at once.
 *
 * Kernel command line (sizes take K, M, G, powers of 1024):
 *   vmferry.rate=20M     bytes/s written to each disk; 0 = none until `rate`
 *   vmferry.block=16K    bytes a write; the last block of a disk may be shorter
 *   vmferry.region=0     only this many bytes at the start of each disk are written; 0 = the whole disk
 *   vmferry.memory=32M   memory with verifiable content
 *   vmferry.dirty=4M     bytes/s of it that are rewritten
 *   vmferry.skip=sda,vdb disks to leave alone
 *   vmferry.dirtybase=0  1 = the disks were not empty at boot: blocks never written are not checked
 *
 * ttyS0, line by line:
 *   t <sequence> <monotonic ms>  every 10 ms
 *   = ready disks=<n> ...        once, before the first tick
 *   = <command> ...              the answer to a command; `= error <command> ...` if it cannot be done
 * Commands: hello, disks, stats, verify, rate <bytes>, pause, resume, poweroff. A command may end in ` #<id>`, which its answer
 * repeats. The id last answered is answered again from memory, so a command may be sent twice when the guest moves meanwhile.
 *
 * The kernel shares ttyS0: with `console=ttyS0 loglevel=0` it is silent there, except for an oops or a panic, which raise the
 * level themselves. Whoever reads the port then finds the reason among the lines that are neither `t` nor `=`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ll
#define TICK (SECOND / 100)
#define SLACK (SECOND / 10) /* how much lateness a writer makes up for; more would be a burst after a pause */
#define SECTOR 512
#define PAGE 4096
#define PAGES_AT_ONCE 16
#define CHUNK (1 << 20) /* what verify reads at once */
#define MAX_DISKS 64
#define MAX_LISTED 8

struct header {
    uint64_t boot, sequence, block, disk;
};

struct disk {
    char name[32];
    int fd;
    uint64_t size, blocks, writable_blocks;
    uint32_t *completed; /* per block, the sequence number of its last completed write; 0 = never written */
    uint32_t sequence;
};

static struct {
    uint64_t rate, block, region, memory, dirty;
    bool dirty_base;
    char skip[256];
} options = {.rate = 20 << 20, .block = 16 << 10, .memory = 32 << 20, .dirty = 4 << 20};

static uint64_t boot; /* in every block: what an earlier run left on the disk must not pass for ours */
static struct disk disks[MAX_DISKS];
static unsigned disk_count;

static uint64_t *memory;
static uint32_t *page_version; /* kept apart from the pages: a stale page would agree with itself */
static uint64_t page_count;

/* Who may write, and what was written. `completed` of each disk is under this lock too. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool paused; /* by command: disks only */
    bool held;   /* by verify: disks and memory */
    unsigned in_flight;
    uint64_t written, bytes, errors;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER};

static const bool never_paused = false;

/* ---- the serial port ---- */

static int serial = -1;
static pthread_mutex_t serial_lock = PTHREAD_MUTEX_INITIALIZER;

static void say_line(const char *line)
{
    pthread_mutex_lock(&serial_lock);
    for (size_t left = strlen(line); left;) {
        ssize_t n = write(serial, line, left);
        if (n < 0 && errno != EINTR)
            break;
        if (n > 0)
            line += n, left -= n;
    }
    pthread_mutex_unlock(&serial_lock);
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (n > (int)sizeof line - 2)
        n = sizeof line - 2;
    strcpy(line + n, "\n");
    say_line(line);
}

/* Pid 1 must not end: the kernel would panic and hide the reason. */
static void die(const char *what)
{
    say("= error init %s: %s", what, strerror(errno));
    for (;;)
        pause();
}

static void open_serial(void)
{
    serial = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    struct termios mode;
    if (tcgetattr(serial, &mode) < 0)
        die("ttyS0");
    cfmakeraw(&mode);
    mode.c_cflag |= CLOCAL | CREAD;
    cfsetspeed(&mode, B115200);
    tcsetattr(serial, TCSANOW, &mode);
}

/* ---- small things ---- */

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static struct timespec to_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / SECOND, .tv_nsec = ns % SECOND};
}

static bool parse_size(const char *text, uint64_t *size)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (end == text || errno)
        return false;
    static const char units[] = "KMG";
    const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
    if (unit)
        value <<= 10 * (unit - units + 1), end++;
    *size = value;
    return *end == '\0';
}

static bool in_list(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at += length)
        if ((at == list || at[-1] == ',') && (at[length] == ',' || at[length] == '\0'))
            return true;
    return false;
}

static size_t read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? 0 : read(fd, text, size - 1);
    close(fd);
    text[n < 0 ? 0 : n] = '\0';
    return n < 0 ? 0 : n;
}

static void start_thread(void *(*run)(void *), void *argument, int realtime_priority)
{
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (realtime_priority) {
        pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
        pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
        pthread_attr_setschedparam(&attributes, &(struct sched_param){.sched_priority = realtime_priority});
    }
    errno = pthread_create(&thread, &attributes, run, argument);
    if (errno)
        die("pthread_create");
}

/* ---- contents: a word stream that only its key can make ---- */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t next_word(uint64_t word)
{
    return word * 6364136223846793005ull + 1442695040888963407ull;
}

static void fill(uint64_t *words, size_t count, uint64_t key)
{
    for (uint64_t word = key; count--;)
        *words++ = word = next_word(word);
}

static bool is_filled(const uint64_t *words, size_t count, uint64_t key)
{
    for (uint64_t word = key; count--;)
        if (*words++ != (word = next_word(word)))
            return false;
    return true;
}

static uint64_t block_key(const struct header *header)
{
    return mix(header->sequence ^ mix(header->block ^ mix(header->disk ^ header->boot)));
}

static uint64_t page_key(uint64_t page)
{
    return mix(page_version[page] ^ mix(page ^ boot));
}

static uint64_t block_bytes(const struct disk *disk, uint64_t block)
{
    uint64_t left = disk->size - block * options.block;
    return left < options.block ? left : options.block;
}

/* ---- writers ---- */

struct pacer {
    const uint64_t *rate;
    const bool *paused;
    int64_t due;
};

/* Returns when writing is allowed and due; the write is in flight from then until leave(). */
static void enter(struct pacer *pacer, uint64_t bytes)
{
    pthread_mutex_lock(&gate.lock);
    for (;;) {
        if (gate.held || *pacer->paused || *pacer->rate == 0) {
            pthread_cond_wait(&gate.changed, &gate.lock);
            continue;
        }
        /* Clamped on both sides: no burst after a pause, and a raised rate counts at once. */
        int64_t now = now_ns(), interval = bytes * SECOND / *pacer->rate;
        if (pacer->due < now - SLACK)
            pacer->due = now - SLACK;
        if (pacer->due > now + interval)
            pacer->due = now + interval;
        if (pacer->due <= now) {
            pacer->due += interval;
            break;
        }
        struct timespec due = to_timespec(pacer->due);
        pthread_cond_timedwait(&gate.changed, &gate.lock, &due);
    }
    gate.in_flight++;
    pthread_mutex_unlock(&gate.lock);
}

static void leave_locked(void)
{
    if (--gate.in_flight == 0 && gate.held)
        pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

_Noreturn static void *write_disk(void *argument)
{
    struct disk *disk = argument;
    struct pacer pacer = {&options.rate, &gate.paused, 0};
    uint64_t random = mix(boot + (disk - disks));
    struct header *header = aligned_alloc(PAGE, (options.block + PAGE - 1) & ~(uint64_t)(PAGE - 1));
    if (!header)
        die("memory for a block");
    for (;;) {
        random = next_word(random);
        uint64_t block = (random >> 32) % disk->writable_blocks, bytes = block_bytes(disk, block);
        enter(&pacer, bytes);
        *header = (struct header){boot, ++disk->sequence, block, disk - disks};
        fill((uint64_t *)(header + 1), (bytes - sizeof *header) / 8, block_key(header));
        bool done = pwrite(disk->fd, header, bytes, block * options.block) == (ssize_t)bytes;
        pthread_mutex_lock(&gate.lock);
        if (done) {
            disk->completed[block] = disk->sequence;
            gate.written++;
            gate.bytes += bytes;
        } else {
            gate.errors++;
        }
        leave_locked();
    }
}

_Noreturn static void *write_memory(void *argument)
{
    (void)argument;
    struct pacer pacer = {&options.dirty, &never_paused, 0};
    uint64_t random = mix(boot);
    for (;;) {
        enter(&pacer, PAGES_AT_ONCE * PAGE);
        for (int i = 0; i < PAGES_AT_ONCE; i++) {
            random = next_word(random);
            uint64_t page = (random >> 32) % page_count;
            page_version[page]++;
            fill(memory + page * (PAGE / 8), PAGE / 8, page_key(page));
        }
        pthread_mutex_lock(&gate.lock);
        leave_locked();
    }
}

_Noreturn static void *tick(void *argument)
{
    (void)argument;
    int64_t due = now_ns();
    for (uint64_t sequence = 1;; sequence++) {
        int64_t now = now_ns();
        say("t %llu %lld", (unsigned long long)sequence, (long long)(now / (SECOND / 1000)));
        /* Ticks that were missed stay missed: a burst would look like life where there was none. */
        due += TICK;
        if (due < now)
            due = now + TICK;
        struct timespec until = to_timespec(due);
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
}

/* ---- verification ---- */

struct verdict {
    uint64_t written, errors, blocks, checked, lost, bad_pages;
    char first[512];
    int listed;
};

static void note_lost(struct verdict *verdict, unsigned disk, uint64_t block, uint64_t expected, const char *found)
{
    verdict->lost++;
    if (verdict->listed++ >= MAX_LISTED)
        return;
    size_t used = strlen(verdict->first);
    snprintf(verdict->first + used, sizeof verdict->first - used, "%s%u:%llu:%llu:%s", used ? "," : "", disk,
             (unsigned long long)block, (unsigned long long)expected, found);
}

/* What a block holds: a sequence number, or `zeros`, `torn` (a header of ours over something else) or `foreign`. */
static void describe_block(const struct header *header, uint64_t bytes, unsigned disk, uint64_t block, char found[24])
{
    const uint64_t *words = (const uint64_t *)header;
    uint64_t any = 0;
    for (size_t i = 0; i < bytes / 8; i++)
        any |= words[i];
    if (!any)
        strcpy(found, "zeros");
    else if (header->boot != boot || header->block != block || header->disk != disk)
        strcpy(found, "foreign");
    else if (!is_filled((const uint64_t *)(header + 1), (bytes - sizeof *header) / 8, block_key(header)))
        strcpy(found, "torn");
    else
        snprintf(found, 24, "%llu", (unsigned long long)header->sequence);
}

static void verify_disk(unsigned index, char *buffer, uint64_t chunk, struct verdict *verdict)
{
    const struct disk *disk = &disks[index];
    for (uint64_t block = 0, offset; (offset = block * options.block) < disk->size;) {
        uint64_t want = disk->size - offset < chunk ? disk->size - offset : chunk;
        bool readable = pread(disk->fd, buffer, want, offset) == (ssize_t)want;
        for (char *at = buffer; at < buffer + want; at += options.block, block++) {
            uint32_t expected = disk->completed[block];
            if (!expected && options.dirty_base)
                continue;
            char wanted[24] = "zeros", found[24] = "unreadable";
            if (expected)
                snprintf(wanted, sizeof wanted, "%u", expected);
            if (readable)
                describe_block((struct header *)at, block_bytes(disk, block), index, block, found);
            verdict->checked++;
            verdict->blocks += expected != 0;
            if (strcmp(wanted, found) != 0)
                note_lost(verdict, index, block, expected, found);
        }
    }
}

static void hold_writers(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.held = true;
    while (gate.in_flight)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

static void release_writers(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.held = false;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static struct verdict verify(void)
{
    struct verdict verdict = {0};
    uint64_t chunk = options.block < CHUNK ? CHUNK / options.block * options.block : options.block;
    char *buffer = aligned_alloc(PAGE, (chunk + PAGE - 1) & ~(uint64_t)(PAGE - 1));
    if (!buffer)
        die("memory to verify with");
    hold_writers();
    verdict.written = gate.written;
    verdict.errors = gate.errors;
    for (unsigned i = 0; i < disk_count; i++)
        verify_disk(i, buffer, chunk, &verdict);
    for (uint64_t page = 0; page < page_count; page++)
        verdict.bad_pages += !is_filled(memory + page * (PAGE / 8), PAGE / 8, page_key(page));
    release_writers();
    free(buffer);
    return verdict;
}

/* ---- commands ---- */

static void answer(char *reply, size_t size, char *command)
{
    char *argument = strchr(command, ' ');
    if (argument)
        *argument++ = '\0';
    uint64_t rate;
    pthread_mutex_lock(&gate.lock);
    unsigned long long written = gate.written, bytes = gate.bytes, errors = gate.errors;
    pthread_mutex_unlock(&gate.lock);

    if (!strcmp(command, "hello")) {
        snprintf(reply, size, "= hello disks=%u memory=%llu", disk_count, (unsigned long long)page_count * PAGE);
    } else if (!strcmp(command, "disks")) {
        int used = snprintf(reply, size, "= disks count=%u", disk_count);
        for (unsigned i = 0; i < disk_count && used < (int)size; i++)
            used += snprintf(reply + used, size - used, " %u:%s:%llu:%llu", i, disks[i].name,
                             (unsigned long long)disks[i].size, (unsigned long long)disks[i].blocks);
    } else if (!strcmp(command, "stats")) {
        snprintf(reply, size, "= stats written=%llu bytes=%llu errors=%llu rate=%llu paused=%d", written, bytes, errors,
                 (unsigned long long)options.rate, gate.paused);
    } else if (!strcmp(command, "verify")) {
        struct verdict verdict = verify();
        snprintf(reply, size, "= verify written=%llu blocks=%llu checked=%llu lost=%llu memory=%llu errors=%llu first=%s",
                 (unsigned long long)verdict.written, (unsigned long long)verdict.blocks, (unsigned long long)verdict.checked,
                 (unsigned long long)verdict.lost, (unsigned long long)verdict.bad_pages, (unsigned long long)verdict.errors,
                 verdict.first[0] ? verdict.first : "-");
    } else if (!strcmp(command, "rate") && argument && parse_size(argument, &rate)) {
        pthread_mutex_lock(&gate.lock);
        options.rate = rate;
        pthread_cond_broadcast(&gate.changed);
        pthread_mutex_unlock(&gate.lock);
        snprintf(reply, size, "= rate %llu", (unsigned long long)rate);
    } else if (!strcmp(command, "pause") || !strcmp(command, "resume")) {
        /* Held for a moment, so that no write is in flight any more when `pause` is answered. */
        hold_writers();
        gate.paused = *command == 'p';
        release_writers();
        snprintf(reply, size, "= %s", command);
    } else if (!strcmp(command, "poweroff")) {
        hold_writers();
        snprintf(reply, size, "= poweroff");
    } else {
        snprintf(reply, size, "= error %s is no command, or its argument is no size", command);
    }
}

static void obey(char *line)
{
    static char reply[1024], last_id[32];
    char *id = strrchr(line, '#');
    if (id && (id == line || id[-1] != ' '))
        id = NULL;
    if (id)
        id[-1] = '\0';
    if (!id || strcmp(id, last_id) != 0) {
        answer(reply, sizeof reply - sizeof last_id, line);
        snprintf(last_id, sizeof last_id, "%s", id ? id : "");
        if (id)
            strcat(strcat(reply, " "), last_id);
    }
    say("%s", reply);
    if (!strncmp(reply, "= poweroff", 10)) {
        tcdrain(serial);
        reboot(RB_POWER_OFF);
    }
}

static void obey_commands(void)
{
    char line[256];
    for (size_t used = 0;;) {
        char c;
        if (read(serial, &c, 1) != 1)
            continue;
        if (c != '\n' && c != '\r') {
            if (used < sizeof line - 1)
                line[used++] = c;
        } else if (used) {
            line[used] = '\0';
            used = 0;
            obey(line);
        }
    }
}

/* ---- start ---- */

static void mount_filesystems(void)
{
    static const char *const types[][2] = {{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        mkdir(types[i][1], 0755);
        mount(types[i][0], types[i][1], types[i][0], 0, NULL);
    }
}

/* finit_module returns after asynchronous probing has ended, so all disks are there afterwards. */
static void load_modules(void)
{
    static char list[4096];
    read_text("/modules.order", list, sizeof list);
    for (char *path = strtok(list, "\n"); path; path = strtok(NULL, "\n")) {
        int fd = open(path, O_RDONLY);
        if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
            say("= error module %s: %s", path, strerror(errno));
        close(fd);
    }
}

static void read_options(void)
{
    static char line[4096];
    read_text("/proc/cmdline", line, sizeof line);
    const struct {
        const char *name;
        uint64_t *size;
    } sizes[] = {{"rate", &options.rate}, {"block", &options.block}, {"region", &options.region}, {"memory", &options.memory}, {"dirty", &options.dirty}};
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        char *value = strchr(word, '=');
        if (strncmp(word, "vmferry.", 8) != 0 || !value)
            continue;
        *value++ = '\0';
        word += 8;
        bool known = true;
        if (!strcmp(word, "skip"))
            snprintf(options.skip, sizeof options.skip, "%s", value);
        else if (!strcmp(word, "dirtybase"))
            options.dirty_base = *value == '1';
        else {
            known = false;
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                known |= !strcmp(word, sizes[i].name) && parse_size(value, sizes[i].size);
        }
        if (!known)
            say("= error option vmferry.%s=%s is unknown, or no size", word, value);
    }
    if (options.block < SECTOR || options.block % SECTOR) {
        errno = EINVAL;
        die("vmferry.block must be a multiple of 512");
    }
}

static void add_disk(const char *name)
{
    char path[300];
    struct disk *disk = &disks[disk_count];
    int read_only = 0;
    if (disk_count == MAX_DISKS || in_list(options.skip, name))
        return;
    snprintf(path, sizeof path, "/dev/%s", name);
    int fd = open(path, O_RDWR | O_DIRECT);
    if (fd < 0 || ioctl(fd, BLKROGET, &read_only) < 0 || read_only || ioctl(fd, BLKGETSIZE64, &disk->size) < 0 || disk->size < options.block) {
        close(fd);
        return;
    }
    disk->fd = fd;
    snprintf(disk->name, sizeof disk->name, "%.31s", name);
    disk->blocks = (disk->size + options.block - 1) / options.block;
    uint64_t region = options.region ? (options.region + options.block - 1) / options.block : disk->blocks;
    disk->writable_blocks = region < disk->blocks ? region : disk->blocks;
    disk->completed = calloc(disk->blocks, sizeof *disk->completed);
    if (!disk->completed)
        die("memory for the blocks' numbers");
    disk_count++;
}

static int is_disk(const struct dirent *entry)
{
    const char *name = entry->d_name;
    return strlen(name) >= 3 && (!strncmp(name, "sd", 2) || !strncmp(name, "vd", 2));
}

static void find_disks(void)
{
    struct dirent **entries;
    int n = scandir("/sys/block", &entries, is_disk, alphasort);
    for (int i = 0; i < n; i++)
        add_disk(entries[i]->d_name);
}

static void prepare_memory(void)
{
    page_count = options.memory / PAGE;
    if (!page_count)
        return;
    memory = aligned_alloc(PAGE, page_count * PAGE);
    page_version = calloc(page_count, sizeof *page_version);
    if (!memory || !page_version)
        die("vmferry.memory");
    for (uint64_t page = 0; page < page_count; page++)
        fill(memory + page * (PAGE / 8), PAGE / 8, page_key(page));
}

int main(void)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&gate.changed, &monotonic);

    mount_filesystems();
    open_serial();
    read_options();
    load_modules();
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall); /* getrandom may wait for seconds this early */
    boot = mix(wall.tv_sec * SECOND + wall.tv_nsec);
    find_disks();
    prepare_memory();

    say("= ready disks=%u memory=%llu block=%llu rate=%llu", disk_count, (unsigned long long)page_count * PAGE,
        (unsigned long long)options.block, (unsigned long long)options.rate);
    start_thread(tick, NULL, 50);
    for (unsigned i = 0; i < disk_count; i++)
        start_thread(write_disk, &disks[i], 0);
    if (page_count)
        start_thread(write_memory, NULL, 0);
    obey_commands();
}
