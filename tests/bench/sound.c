// The audio of many phones, and how evenly they are served: `make bench` compiles and runs it (tests/bench/media.py).
//
// Standard input is a SOCK_SEQPACKET socket. Each message is one letter, and what belongs to it:
//   A<kind><port>  with one descriptor: a phone's own UDP socket. From now on it sends 20 ms of a-law to 127.0.0.1:<port>
//                  fifty times a second, and what it hears is looked at. <kind> is one letter, reported by itself.
//   E<port>        the call that was sent to this port is over
//   M              forget what was counted: the measurement begins
//   R              write what was counted to standard output, one line of JSON
// End of input ends the program.
//
// Arrivals are the kernel's own time stamps: that this program was late to read does not matter. That it was late to
// send does: such a tick is remembered, and a gap in which one lies is counted as our own, not as Asterisk's.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STREAMS = 4096, PHASES = 4, FRAME = 160, HEADER = 12, ALAW = 8, BATCH = 8, LATE_TICKS = 256 };
static const int64_t MS = 1000000, TICK = 5 * MS, GAP = 60 * MS, LATE = 10 * MS;

typedef struct {
    int fd;
    char kind;
    int port;
    uint16_t sequence;
    uint32_t timestamp, source;
    int64_t heard;  // wall clock, nanoseconds; 0: nothing since the measurement began
    uint16_t heard_sequence;
    uint32_t heard_source;
} Stream;

typedef struct {
    int streams;
    long received, lost, gaps, our_gaps;
    int64_t largest, largest_not_ours;
} Counts;

static Stream streams[MAX_STREAMS];
static int stream_count;
static Counts counts[128];
static int64_t late_ticks[LATE_TICKS];  // when: wall clock
static int late_tick_count;
static long lateness[1001];  // ticks by tenths of a millisecond; the last: 100 ms and more
static int64_t worst_late, began;

static int64_t now_of(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000 * MS + t.tv_nsec;
}

static int was_late_between(int64_t from, int64_t to) {
    int kept = late_tick_count < LATE_TICKS ? late_tick_count : LATE_TICKS;
    for (int i = 0; i < kept; i++)
        if (late_ticks[i] >= from && late_ticks[i] <= to) return 1;
    return 0;
}

static void note_gap(const Stream *s, int64_t until) {
    Counts *c = &counts[(int)s->kind];
    int64_t since = s->heard ? s->heard : began, gap = until - since;
    // Late in sending by 20 ms means that the packet before was the last in time.
    int ours = gap > GAP && was_late_between(since - 20 * MS, until + 20 * MS);
    if (gap > GAP) ours ? c->our_gaps++ : c->gaps++;
    if (gap > c->largest) c->largest = gap;
    if (!ours && gap > c->largest_not_ours) c->largest_not_ours = gap;
}

static void hear(Stream *s, const unsigned char *packet, int length, int64_t at) {
    if (length < HEADER || packet[0] >> 6 != 2 || (packet[1] & 127) != ALAW) return;
    Counts *c = &counts[(int)s->kind];
    uint16_t sequence = packet[2] << 8 | packet[3];
    uint32_t source = (uint32_t)packet[8] << 24 | packet[9] << 16 | packet[10] << 8 | packet[11];
    c->received++;
    int16_t step = sequence - s->heard_sequence;
    if (s->heard && source == s->heard_source && step > 1) c->lost += step - 1;
    note_gap(s, at);
    s->heard = at, s->heard_sequence = sequence, s->heard_source = source;
}

static void listen_to(Stream *s) {
    static unsigned char packets[BATCH][2048];
    static char control[BATCH][64];
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH];
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){packets[i], sizeof packets[i]};
            messages[i].msg_hdr = (struct msghdr){
                .msg_iov = &parts[i], .msg_iovlen = 1, .msg_control = control[i], .msg_controllen = sizeof control[i]};
        }
        int count = recvmmsg(s->fd, messages, BATCH, MSG_DONTWAIT, 0);
        for (int i = 0; i < count; i++) {
            struct cmsghdr *c = CMSG_FIRSTHDR(&messages[i].msg_hdr);
            struct timespec t;
            if (!c || c->cmsg_type != SCM_TIMESTAMPNS) continue;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            hear(s, packets[i], messages[i].msg_len, t.tv_sec * 1000 * MS + t.tv_nsec);
        }
        if (count < BATCH) return;
    }
}

static void speak(Stream *s) {
    unsigned char packet[HEADER + FRAME] = {0x80, ALAW};
    packet[2] = s->sequence >> 8, packet[3] = s->sequence & 255;
    uint32_t fields[2] = {htonl(s->timestamp), htonl(s->source)};
    memcpy(packet + 4, fields, sizeof fields);
    static const unsigned char tone[4] = {0xD5, 0xA5, 0xD5, 0x25};  // 2 kHz in a-law: 0, +, 0, -
    for (int i = 0; i < FRAME; i++) packet[HEADER + i] = tone[i & 3];
    s->sequence++, s->timestamp += FRAME;
    send(s->fd, packet, sizeof packet, MSG_DONTWAIT);
}

static void add(char kind, int port, int fd) {
    struct sockaddr_in remote = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    if (stream_count == MAX_STREAMS || connect(fd, (struct sockaddr *)&remote, sizeof remote) ||
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on)) {
        perror("a phone's socket");
        exit(1);
    }
    int number = stream_count++;
    streams[number] = (Stream){.fd = fd, .kind = kind, .port = port, .source = 0x10000 + number};
    counts[(int)kind].streams++;
}

static void end(int port) {
    for (int i = 0; i < stream_count; i++)
        if (streams[i].port == port) {
            counts[(int)streams[i].kind].streams--;
            close(streams[i].fd);
            streams[i] = streams[--stream_count];
            return;
        }
}

static void begin(void) {
    for (int i = 0; i < stream_count; i++) listen_to(&streams[i]), streams[i].heard = 0;
    for (int i = 0; i < 128; i++) counts[i] = (Counts){.streams = counts[i].streams};
    memset(lateness, 0, sizeof lateness);
    worst_late = late_tick_count = 0;
    began = now_of(CLOCK_REALTIME);
}

static void report(void) {
    long ticks = 0, seen = 0;
    int p99 = 0;
    // Who is served no more has a gap that no packet ends.
    for (int i = 0; i < stream_count; i++) listen_to(&streams[i]), note_gap(&streams[i], now_of(CLOCK_REALTIME));
    for (int i = 0; i <= 1000; i++) ticks += lateness[i];
    while (p99 < 1000 && (seen += lateness[p99]) * 100 < ticks * 99) p99++;
    printf("{\"late_p99_ms\": %.1f, \"late_worst_ms\": %.1f, \"late_ticks\": %d", p99 / 10.0, worst_late / 1e6,
           late_tick_count);
    for (int i = 0; i < 128; i++)
        if (counts[i].streams)
            printf(", \"%c\": {\"streams\": %d, \"received\": %ld, \"lost\": %ld, \"gaps\": %ld, \"our_gaps\": %ld, "
                   "\"largest_ms\": %.1f, \"largest_not_ours_ms\": %.1f}",
                   i, counts[i].streams, counts[i].received, counts[i].lost, counts[i].gaps, counts[i].our_gaps,
                   counts[i].largest / 1e6, counts[i].largest_not_ours / 1e6);
    printf("}\n");
    fflush(stdout);
}

static void obey(void) {
    for (;;) {
        char text[64] = "", control[CMSG_SPACE(sizeof(int))];
        struct iovec part = {text, sizeof text - 1};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t length = recvmsg(0, &message, MSG_DONTWAIT);
        if (length == 0) exit(0);
        if (length < 0) {
            if (errno == EAGAIN || errno == EINTR) return;
            exit(0);
        }
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        if (text[0] == 'A' && c) {
            int fd;
            memcpy(&fd, CMSG_DATA(c), sizeof fd);
            add(text[1] & 127, atoi(text + 2), fd);
        } else if (text[0] == 'E') {
            end(atoi(text + 1));
        } else if (text[0] == 'M') {
            begin();
        } else if (text[0] == 'R') {
            report();
        }
    }
}

int main(void) {
    int64_t due = now_of(CLOCK_MONOTONIC);
    for (unsigned tick = 0;; tick++) {
        obey();
        for (int i = tick % PHASES; i < stream_count; i += PHASES) speak(&streams[i]);
        int64_t late = now_of(CLOCK_MONOTONIC) - due;
        lateness[late < 100 * MS ? late * 10 / MS : 1000]++;
        if (late > worst_late) worst_late = late;
        if (late > LATE) late_ticks[late_tick_count++ % LATE_TICKS] = now_of(CLOCK_REALTIME);
        for (int i = tick % PHASES; i < stream_count; i += PHASES) listen_to(&streams[i]);
        due += TICK;
        struct timespec until = {due / (1000 * MS), due % (1000 * MS)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
    }
}
