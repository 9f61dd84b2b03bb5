/* What the script says of the stand-in driver's GPUs; tests/stand_in.py describes its keys.
 * A key that is absent or `unsupported` gives NOT_SUPPORTED, `missing` what a driver too old for the call gives. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9,
    NO_FUNCTION = 13, LOST = 15, WRONG_VERSION = 25
};
enum { GPUS = 16, SLICES = 7, TEXT = 4096 };

typedef struct { int gpu, slice; } device_t; /* slice -1: the whole board */
typedef unsigned int uint;

static device_t boards[GPUS], slices[GPUS][SLICES];
static int started;

static FILE *script(void) { return fopen(getenv("STAND_IN_SCRIPT") ? getenv("STAND_IN_SCRIPT") : "", "r"); }

/* The value of a key into `value` of TEXT bytes; NULL: the script has no such key. */
static char *lookup(const char *key, char *value) {
    char line[TEXT], *found = NULL;
    size_t length = strlen(key);
    FILE *file = script();
    while (file && !found && fgets(line, TEXT, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && (line[length] == ' ' || !line[length]))
            found = strcpy(value, line + length + (line[length] == ' '));
    }
    if (file) fclose(file);
    return found;
}

static uint setting(const char *key) {
    char value[TEXT];
    return lookup(key, value) ? (uint)atoi(value) : 0;
}

static char *lookup_of(const device_t *device, const char *key, char *value) {
    char full[128];
    if (device->slice < 0) snprintf(full, sizeof full, "gpu%d.%s", device->gpu, key);
    else snprintf(full, sizeof full, "gpu%d.mig%d.%s", device->gpu, device->slice, key);
    return lookup(full, value);
}

/* What any call for a device starts with. */
static int reach(const device_t *device) {
    char value[TEXT];
    if (!started) return UNINITIALIZED;
    return lookup_of(&boards[device->gpu], "lost", value) && atoi(value) ? LOST : OK;
}

static int text(const device_t *device, const char *key, char *value) {
    int status = reach(device);
    if (status) return status;
    if (!lookup_of(device, key, value) || !strcmp(value, "unsupported")) return UNSUPPORTED;
    return strcmp(value, "missing") ? OK : NO_FUNCTION;
}

static int number(const device_t *device, const char *key, double *value) {
    char given[TEXT];
    int status = text(device, key, given);
    if (!status) *value = strtod(given, NULL);
    return status;
}

static int whole(const device_t *device, const char *key, double scale, uint *value) {
    double given;
    int status = number(device, key, &given);
    if (!status) *value = (uint)(given * scale + 0.5);
    return status;
}

static int copied(const device_t *device, const char *key, char *into, uint size) {
    char value[TEXT];
    int status = text(device, key, value);
    if (!status && strlen(value) >= size) return TOO_SMALL;
    if (!status) strcpy(into, value);
    return status;
}

static uint at_most(uint count, uint most) { return count < most ? count : most; }
static uint gpu_count(void) { return at_most(setting("count"), GPUS); }
static uint slices_of(const device_t *board) {
    char value[TEXT];
    return lookup_of(board, "mig", value) ? at_most((uint)atoi(value), SLICES) : 0;
}
