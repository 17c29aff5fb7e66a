/* The readers of recorded references: no damage takes them beyond their buffers. Every input is
 * scanned from a heap block of its exact size, so that a sanitizer sees one byte too many. */
#include "check.h"
#include "streams.h"

#include <string.h>

enum { ROOM = 64 };

/* Scan `length` bytes in pieces of at most `piece`; returns the number of records. */
static uint64_t scan(vtx_scanner *scanner, const char *bytes, size_t length, size_t piece,
                     int strict) {
    uint64_t total = 0;
    size_t at = 0, have = 0;
    char *rest = NULL;
    for (int final = 0; !final;) {
        const size_t more = length - at < piece ? length - at : piece;
        final = more == 0;
        char *buffer = malloc(have + more ? have + more : 1);
        uint64_t *out = malloc(ROOM * sizeof *out);
        REQUIRE(buffer && out);
        if (have)
            memcpy(buffer, rest, have);
        memcpy(buffer + have, bytes + at, more);
        free(rest);
        at += more;
        have += more;
        size_t done = 0;
        uint64_t count;
        do {
            done += vtx_scanner_scan(scanner, buffer + done, have - done, final, strict, out, ROOM,
                                     &count);
            REQUIRE(done <= have && count <= ROOM);
            for (uint64_t i = 0; i < count; i++)
                CHECK((out[i] >> 48 & 0x3fff) - 1 < STREAM_MAX_BYTES);
            total += count;
        } while (count > ROOM - STREAM_MOST_OF_ONE);
        have -= done;
        rest = malloc(have ? have : 1);
        REQUIRE(rest);
        memcpy(rest, buffer + done, have);
        free(buffer);
        free(out);
        if (strict && vtx_scanner_counted(scanner)->malformed)
            break;
    }
    free(rest);
    return total;
}

static void check_sum(const vtx_scanner *scanner, uint64_t records) {
    const vtx_stream_counts *counts = vtx_scanner_counted(scanner);
    uint64_t skipped = 0, kinds = 0;
    for (int i = 0; i < VTX_STREAM_SKIP_KINDS; i++)
        skipped += counts->skipped[i];
    for (int i = 0; i < 4; i++)
        kinds += counts->kinds[i];
    CHECK(counts->used + skipped == counts->read);
    CHECK(kinds == records);
}

static void pieces(void) {
    static const char text[] = "==1== x\nI  0401ab70,3\n L 1fff000778,8\r\nhello\n S 10,16\n"
                               " M 0fffffffffff,4096\nI  0401ab70,3\n L 12";
    for (size_t piece = 1; piece < sizeof text; piece++) {
        vtx_scanner *scanner = vtx_scanner_new(VTX_STREAM_LACKEY, 0);
        REQUIRE(scanner);
        const uint64_t records = scan(scanner, text, sizeof text - 1, piece, 1);
        CHECK(records == 5);
        const vtx_stream_counts *counts = vtx_scanner_counted(scanner);
        CHECK(counts->skipped[VTX_STREAM_MESSAGE] == 1 && counts->skipped[VTX_STREAM_OTHER] == 1);
        CHECK(counts->skipped[VTX_STREAM_CUT] == 1 && counts->malformed == 0);
        check_sum(scanner, records);
        vtx_scanner_free(scanner);
    }
}

static void malformed(void) {
    static const char text[] = "I  0401ab70,3\n L zz,8\n S 10,16\n";
    for (int strict = 0; strict < 2; strict++) {
        vtx_scanner *scanner = vtx_scanner_new(VTX_STREAM_LACKEY, 0);
        REQUIRE(scanner);
        CHECK(scan(scanner, text, sizeof text - 1, 99, strict) == (strict ? 1 : 2));
        CHECK(vtx_scanner_counted(scanner)->malformed == 2);
        vtx_scanner_free(scanner);
    }
    CHECK(!vtx_scanner_new(VTX_STREAM_CLOUDSUITE + 1, 0));
    CHECK(!vtx_scanner_new(VTX_STREAM_DRMEMTRACE, 13));
    vtx_scanner_free(NULL);
}

/* Bytes that look a little like the format, so that not everything is refused at once. */
static void fill(char *bytes, size_t length, uint32_t format, uint32_t entry_bytes) {
    static const char alphabet[] = "I LSM 0123456789abcdef,,8\n\n\r= ";
    for (size_t i = 0; i < length; i++)
        bytes[i] = format == VTX_STREAM_LACKEY && random64() % 16
                       ? alphabet[random64() % (sizeof alphabet - 1)]
                       : (char)random64();
    if (format == VTX_STREAM_DRMEMTRACE)
        for (size_t i = 0; i + entry_bytes <= length; i += entry_bytes) {
            bytes[i] = (char)(random64() % 52);
            bytes[i + 1] = 0;
        }
}

static void noise(void) {
    static const uint32_t widths[] = {8, 12, 16};
    static char bytes[700];
    for (int round = 0; round < 20000; round++) {
        const uint32_t format = (uint32_t)(random64() % 4), width = widths[random64() % 3];
        const size_t length = random64() % sizeof bytes;
        fill(bytes, length, format, width);
        vtx_scanner *scanner = vtx_scanner_new(format, width);
        REQUIRE(scanner);
        if (random64() % 4 == 0)
            vtx_scanner_only_tid(scanner, random64() % 4);
        if (random64() % 4 == 0)
            vtx_scanner_only_pid(scanner, random64() % 4);
        check_sum(scanner, scan(scanner, bytes, length, 1 + random64() % 300, random64() % 2));
        vtx_scanner_free(scanner);
    }
}

static void checked(void) {
    uint64_t records[1500], kinds[4] = {0};
    for (uint64_t i = 0; i < 1500; i++)
        records[i] = stream_record(i % 4, 1 + i % 4096, i);
    CHECK(vtx_stream_check(records, 1500, kinds) == 1500);
    CHECK(vtx_stream_check(records, 1500, NULL) == 1500);
    CHECK(vtx_stream_check(records, 0, NULL) == 0);
    for (int kind = 0; kind < 4; kind++)
        CHECK(kinds[kind] == 375);
    records[1499] = 5;
    CHECK(vtx_stream_check(records, 1500, NULL) == 1499);
    records[700] = stream_record(3, 4097, 0);
    CHECK(vtx_stream_check(records, 1500, NULL) == 700);
}

int main(void) {
    pieces();
    malformed();
    noise();
    checked();
    return outcome();
}
