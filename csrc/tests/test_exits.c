/* The scanner of traces: what a line comes to, and that no damage takes it beyond its buffer. Every
 * text is scanned from a heap block of its exact size, so that a sanitizer sees one byte too many. */
#include "check.h"
#include "exits.h"

#include <string.h>

enum { ROOM = 64 };

/* Scan a text of `length` bytes in pieces; returns the number of exits, the last of them in *last. */
static uint64_t scan(vtx_exits *scanner, const char *text, size_t length, size_t piece,
                     vtx_exit *last) {
    vtx_exit out[ROOM];
    uint64_t exits = 0, count;
    size_t at = 0, have = 0;
    char *rest = NULL;
    for (int final = 0; !final;) {
        const size_t more = length - at < piece ? length - at : piece;
        final = more == 0;
        char *buffer = malloc(have + more ? have + more : 1);
        REQUIRE(buffer);
        if (have)
            memcpy(buffer, rest, have);
        memcpy(buffer + have, text + at, more);
        free(rest);
        at += more;
        have += more;
        size_t done = 0;
        do {
            done += vtx_exits_scan(scanner, buffer + done, have - done, final, out, ROOM, &count);
            exits += count;
            if (count && last)
                *last = out[count - 1];
        } while (count == ROOM);
        have -= done;
        rest = malloc(have ? have : 1);
        REQUIRE(rest);
        memcpy(rest, buffer + done, have);
        free(buffer);
    }
    CHECK(have == 0);
    free(rest);
    while ((count = vtx_exits_close(scanner, out, ROOM)) != 0) {
        exits += count;
        if (last)
            *last = out[count - 1];
    }
    return exits;
}

static void one_exit(void) {
    static const char text[] =
        " qemu-12  [003] d..1 5.000001: kvm_exit: vcpu 1 reason MSR_WRITE rip 0xffff info1 0x1\n"
        " qemu-12  [003] d..1 5.000002: kvm_msr: msr_write 6e0 = 0x10\n"
        " qemu-12  [003] d..1 5.000004: kvm_entry: vcpu 1, rip 0x10001\n";
    for (size_t piece = 1; piece < sizeof text; piece++) {
        vtx_exits *scanner = vtx_exits_new();
        REQUIRE(scanner);
        vtx_exit exit;
        CHECK(scan(scanner, text, sizeof text - 1, piece, &exit) == 1);
        CHECK(exit.time_ns == 5000001000u && exit.duration_ns == 3000);
        CHECK(exit.rip == 0xffff && exit.info1 == 1 && exit.tid == 12 && exit.vcpu == 1);
        CHECK(exit.detail_kind == VTX_EVENT_MSR && exit.detail == 0x6e0 && exit.value == 0x10);
        CHECK(strcmp(vtx_exits_name(scanner, exit.reason), "MSR_WRITE") == 0);
        CHECK(vtx_exits_name(scanner, 99) == NULL);
        CHECK(vtx_exits_counted(scanner)->read == 3 && vtx_exits_counted(scanner)->used == 3);
        vtx_exits_free(scanner);
    }
    vtx_exits_free(NULL);
}

static const char *const forms[] = {
    " qemu-12  [003] d..1 5.000001: kvm_exit: vcpu 1 reason UNKNOWN (74) rip 0x1 info 0 800000ec\n",
    "CPU 0/KVM-12 ( 11) [003] d..1. 5.000001: kvm_exit:\n reason HLT\n rip 0x1 info\n 0 0\n",
    "> a 12/13 [003]  5.000001: kvm:kvm_nested_vmexit: rip: 0x1 reason: X ext_inf1: 0x1\n",
    "x-12 3d..1 5.000001: kvm_page_fault: vcpu 1 rip 0x1 address 0x5000 error_code 0x181\n",
    "x-12 [003] 5.000001: kvm_pio: pio_write at 0x70 size 1 count 1 val 0x8f (...)\n",
    "x-12 [003] 5.000001: kvm_mmio: mmio unsatisfied-read len 4 gpa 0xfee val 0x0\n",
    "x-12 [003] 5.000001: kvm_inj_virq: IRQ 0xec [reinjected]\n",
    "x-12 [003] 5.000001: kvm_userspace_exit: reason KVM_EXIT_IO (2)\n",
    "x-12 [003] 5.000001: kvm_cpuid: func 16 idx 0 rax 0\n",
    "]  0.000000100 -x-- d1v0 vmexit exit_reason CPUID eip ff\n]  0.0000003 - d1v0 vmentry cycles 2\n",
    "CPU:3 [LOST 128 EVENTS]\n# comment\n\ncpus=4\n",
    "kvm_exit: reason HLT rip 0x1\nkvm_entry: vcpu 0\n",
    "x-12 [003] 5.000001: kvm_exit: CAN'T FIND FIELD \"rip\"<CANT> vcpu 0 reason X rip 0x1 [s+0x1]\n",
};

static void damaged(void) {
    char text[4096];
    for (int round = 0; round < 20000; round++) {
        size_t length = 0;
        for (int i = 0; i < 6; i++) {
            const char *form = forms[random64() % (sizeof forms / sizeof *forms)];
            const size_t all = strlen(form);
            const size_t part = random64() % 4 ? all : (size_t)(random64() % all);
            memcpy(text + length, form, part);
            length += part;
        }
        for (uint64_t harm = random64() % 6; harm && length; harm--)
            text[random64() % length] =
                random64() % 3 ? " \n>[]:.0xv(-\xc2\xa0"[random64() % 14] : (char)random64();
        vtx_exits *scanner = vtx_exits_new();
        REQUIRE(scanner);
        scan(scanner, text, length, (size_t)(1 + random64() % 600), NULL);
        const vtx_exit_counts *counts = vtx_exits_counted(scanner);
        uint64_t skipped = 0;
        for (int i = 0; i < VTX_SKIP_KINDS; i++)
            skipped += counts->skipped[i];
        CHECK(counts->read == counts->used + skipped);
        vtx_exits_free(scanner);
    }
}

/* As many threads and names as there can be, and a few more. */
static void crowded(void) {
    vtx_exits *scanner = vtx_exits_new();
    REQUIRE(scanner);
    uint64_t exits = 0;
    for (unsigned tid = 1; tid <= EXITS_MAX_STREAMS + 10; tid++) {
        char text[128];
        const int length = snprintf(text, sizeof text, "x-%u [0] 1.0: kvm_exit: reason R%u rip 0x1\n",
                                    tid, tid % (EXITS_MAX_NAMES + 10));
        vtx_exit out[2];
        uint64_t count;
        CHECK(vtx_exits_scan(scanner, text, (uint64_t)length, 1, out, 2, &count) == (uint64_t)length);
        exits += count;
    }
    CHECK(exits == 0 && vtx_exits_name_count(scanner) == EXITS_MAX_NAMES);
    CHECK(vtx_exits_counted(scanner)->skipped[VTX_SKIP_CUT] >= 10);
    vtx_exits_free(scanner);
}

static void long_lines(void) {
    enum { LENGTH = EXITS_MAX_LINE * 3 };
    char *text = malloc(LENGTH);
    REQUIRE(text);
    memset(text, 'a', LENGTH);
    static const char last[] = "\nx-1 [0] 1.0: kvm_exit: reason HLT rip 0x1\n";
    memcpy(text + LENGTH - (sizeof last - 1), last, sizeof last - 1);
    for (size_t piece = 1000; piece <= LENGTH; piece = piece * 5 + 1) {
        vtx_exits *scanner = vtx_exits_new();
        REQUIRE(scanner);
        CHECK(scan(scanner, text, LENGTH, piece, NULL) == 1);
        CHECK(vtx_exits_counted(scanner)->skipped[VTX_SKIP_TOO_LONG] == 1);
        CHECK(vtx_exits_counted(scanner)->read == 2);
        vtx_exits_free(scanner);
    }
    free(text);
}

int main(void) {
    one_exit();
    damaged();
    crowded();
    long_lines();
    return outcome();
}
