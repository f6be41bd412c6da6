#include "bindings/arrays.hpp"
#include "rows/rows.hpp"

#include <cstdlib>
#include <vector>
#ifdef __GLIBC__
#include <malloc.h>
#endif

void bind_rice(py::module_&);
void bind_calibrate(py::module_&);
void bind_background(py::module_&);
void bind_detect(py::module_&);
void bind_measure(py::module_&);
void bind_resample(py::module_&);
void bind_combine(py::module_&);

namespace {

std::vector<std::string> level_names() {
    std::vector<std::string> names;
    for (const char* const* name = fastack::levels(); *name; ++name)
        names.emplace_back(*name);
    return names;
}

void choose_level(const std::optional<std::string>& name) {
    if (fastack::choose(name ? name->c_str() : nullptr))
        return;
    std::string all;
    for (const std::string& level : level_names())
        all += " " + level;
    throw std::invalid_argument("FASTACK_ISA: this build and processor have" + all + ", not " + name.value_or(""));
}

/// Blocks of up to 4 MiB are used again and not given back for every tile: the system would clear their pages each time.
void keep_freed_memory() {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
#endif
}

} // namespace

PYBIND11_MODULE(_pixels, m, py::mod_gil_not_used()) {
    m.doc() = "Pixel kernels: serial, re-entrant, without the GIL.";
    m.def("isa", [] { return std::string(fastack::rows().name); }, "Name of the instruction set in use.");
    m.def("isa_levels", &level_names, "Instruction sets that this build holds and this processor runs.");
    m.def("keep_freed_memory", &keep_freed_memory, "For a process that is ours alone: do not return small blocks.");
    m.def("_choose_isa", &choose_level, "name"_a.none(true), "Force an instruction set; for tests.");
    bind_rice(m);
    bind_calibrate(m);
    bind_background(m);
    bind_detect(m);
    bind_measure(m);
    bind_resample(m);
    bind_combine(m);
    if (const char* name = std::getenv("FASTACK_ISA"); name && *name)
        choose_level(std::string(name));
}
