// A bundle: its folder and its manifest, of which docs/reference/bundle.md describes every field.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace fs = std::filesystem;
using nlohmann::json;

// A sentence for people: what is wrong, where, and what to do.
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A positive number; get<std::size_t>() alone would take -1 and 1.5 for one.
inline std::size_t positive(const json& value) {
    if (!value.is_number_unsigned() || value == 0)
        throw Failure("the manifest has " + value.dump() + " where a positive number belongs; build the bundle again");
    return value.get<std::size_t>();
}

class Bundle {
public:
    // Read the manifest. Whether its files are there with their sizes is checked, their hashes are not.
    explicit Bundle(const fs::path& folder) : folder_(folder) {
        const fs::path path = folder / "manifest.json";
        std::error_code none;
        std::ifstream file;
        if (fs::is_regular_file(path, none)) file.open(path, std::ios::binary);
        if (!file.is_open())
            throw Failure(folder.string() + ": holds no readable manifest.json; name the folder of a bundle");
        manifest_ = json::parse(file);
        const json& version = manifest_.at("schema_version");
        if (version != 6 && version != 7 && version != 8) refuse("is of version " + version.dump() + ", and this program reads 6 to 8");
        bool served = false;
        for (const json& backend : manifest_.at("backends")) served = served || backend.at("name") == "openvino";
        if (!served) refuse("is not for OpenVINO");
        for (const char* name : {"image_encoder", "geometry_encoder", "aggregator", "dense_head", "scene"}) {
            if (!manifest_.at("stages").contains(name)) refuse("has no stage " + std::string(name));
            check_file(stage(name));
            for (const json& data : stage(name).at("data")) check_file(data);
        }
    }

    const json& manifest() const { return manifest_; }

    const json& stage(const std::string& name) const { return manifest_.at("stages").at(name); }

    std::string stage_file(const std::string& name) const {
        return (folder_ / stage(name).at("file").get<std::string>()).string();
    }

    // Views that a stage takes at once, for those that take chunks.
    std::size_t chunk(const std::string& name) const {
        const json& chunks = manifest_.at("profile").at("chunks");
        return chunks.contains(name) ? positive(chunks.at(name)) : 1;
    }

    // Whether the float32 products of a stage are to be rounded to bfloat16.
    bool in_bfloat16(const std::string& name) const {
        const json& quantization = manifest_.at("quantization");
        const json& precision = quantization.is_null() ? manifest_.at("precision") : quantization.at("rest");
        return precision == "bf16" && (name == "image_encoder" || name == "aggregator");
    }

    void check_views(std::size_t views) const {
        const json& served = manifest_.at("profile").at("views");
        if (views < positive(served.at("min")) || views > positive(served.at("max")))
            throw Failure("there are " + std::to_string(views) + " images, and the bundle serves " +
                          served.at("min").dump() + " to " + served.at("max").dump() +
                          "; give as many, or build it with other --views");
    }

    // Refuse images, named `what`, of a size that was not built.
    void check_size(const std::string& what, std::size_t width, std::size_t height) const {
        const json& sizes = manifest_.at("profile").at("sizes");
        bool fits = false;
        std::string served;
        if (sizes.is_object()) {
            const json& any = sizes.at("any");
            const std::size_t least = positive(any.at("min")), most = positive(any.at("max"));
            const std::size_t step = positive(any.at("multiple"));
            fits = std::min(width, height) >= least && std::max(width, height) <= most && width % step == 0 &&
                   height % step == 0;
            served = " sides from " + std::to_string(least) + " to " + std::to_string(most) + " in steps of " +
                     std::to_string(step);
        } else {
            for (const json& size : sizes) {
                fits = fits || (size.at(0) == width && size.at(1) == height);
                served += " " + size.at(0).dump() + "x" + size.at(1).dump();
            }
        }
        if (!fits)
            throw Failure(what + ": is " + std::to_string(width) + "x" + std::to_string(height) +
                          ", and the bundle serves" + served + "; resize the image");
    }

private:
    [[noreturn]] void refuse(const std::string& what) const {
        throw Failure(folder_.string() + ": the bundle " + what + "; build it again with --backend openvino");
    }

    // A file of the bundle has a plain name, lies in its folder, and has its size.
    void check_file(const json& record) const {
        const auto name = record.at("file").get<std::string>();
        if (name.empty() || name[0] == '.' || name.find_first_of("/\\:") != std::string::npos)
            refuse("lists the file " + name + ", which is no plain name");
        const fs::path path = folder_ / name;
        std::error_code none;
        if (!fs::is_regular_file(path, none) || record.at("bytes") != fs::file_size(path, none))
            refuse("lacks the file " + name + ", or it has another size");
    }

    fs::path folder_;
    json manifest_;
};
